"""diffusers' testers of pipelines, on ``MultimodalDiTPipeline``."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers_checkout import ButFor, of_diffusers

from mmdit.flow.schedulers import make_scheduler
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

mixins = of_diffusers("pipelines.testing_utils")


class Config(ButFor, mixins.BasePipelineTesterConfig):
    pipeline_class = MultimodalDiTPipeline
    required_input_params_in_call_signature = frozenset(["class_labels"])
    batch_input_params = frozenset(["class_labels"])
    callback_cfg_params = frozenset()
    output_shape = (3, 32, 32)

    def get_dummy_components(self, num_layers: int = 2) -> dict[str, Any]:
        torch.manual_seed(0)
        transformer = MultimodalDiT(sample_size=8, hidden_size=32, depth=num_layers, num_heads=2, num_classes=5)
        with torch.no_grad():
            for parameter in transformer.parameters():
                parameter.normal_(std=0.15)
        vae = AutoencoderKL(
            in_channels=12, out_channels=12, down_block_types=("DownEncoderBlock2D",) * 2, sample_size=16,
            up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        )  # fmt: skip
        return {"transformer": transformer.eval(), "vae": vae.eval(), "scheduler": make_scheduler("euler")}

    def get_dummy_inputs(self) -> dict[str, Any]:
        return {
            "class_labels": 1,
            "generator": self.get_generator(0),
            "num_inference_steps": 2,
            "guidance_scale": 4.0,
            "output_type": "pt",
        }


class TestPipeline(Config, mixins.PipelineTesterMixin):
    exceptions = {  # noqa: RUF012
        "test_encode_prompt_works_in_isolation": "makes a pipeline of text encoders alone; the transformer says what prompts are",
    }


class TestMemory(Config, mixins.MemoryTesterMixin):
    pass


class TestFirstBlockCache(Config, mixins.FirstBlockCacheTesterMixin):
    pass


_PICKLE = "saves by pickle; weights are safetensors alone"
_SCALE = "scales by attention_kwargs; set_adapters has the weight"


class TestLora(Config, mixins.LoraTesterMixin):
    exceptions = {  # noqa: RUF012
        "test_low_cpu_mem_usage_with_loading": _PICKLE,
        "test_simple_inference_with_text_denoiser_lora_save_load": _PICKLE,
        "test_simple_inference_with_text_denoiser_lora_and_scale": _SCALE,
        "test_lora_scale_kwargs_match_fusion": _SCALE,
        "test_set_adapters_match_attention_kwargs": _SCALE,
        "test_logs_info_when_no_lora_keys_found": "logs that a file holds no LoRA of this model; it is refused",
    }
    denoiser_target_modules = {"transformer": ["qkv", "proj"]}  # noqa: RUF012 - as in diffusers


class TestLoraMemory(Config, mixins.LoraMemoryTesterMixin):
    denoiser_target_modules = {"transformer": ["qkv", "proj"]}  # noqa: RUF012 - as in diffusers
