"""diffusers' testers of models, on ``MultimodalDiT``.

Not among them, for the model refuses in one line what they are about: attention processors and backends (``MMDIT_KERNELS``
chooses ours), and caches that look for diffusers' attention layers or for a time (Pyramid, Faster, Mag, TaylorSeer).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers_checkout import ButFor, of_diffusers

from mmdit.conditioning import Conditioning
from mmdit.models.transformer import MultimodalDiT

mixins = of_diffusers("models.testing_utils")
device = of_diffusers("testing_utils").torch_device


class RandomDiT(MultimodalDiT):
    """No layer begins at zero, and layers have the names that diffusers' LoRA testers ask for."""

    def initialize_weights(self) -> None:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.15)

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        ours = {"to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj"}
        adapter_config.target_modules = {ours.get(name, name) for name in adapter_config.target_modules}
        super().add_adapter(adapter_config, adapter_name)


class Config(ButFor, mixins.BaseModelTesterConfig):
    model_class = RandomDiT
    main_input_name = "latents"
    cache_input_key = "latents"
    output_shape = (4, 4, 8, 8)

    def get_init_dict(self) -> dict[str, Any]:
        return {"sample_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 5}

    def get_dummy_inputs(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1)
        inputs: dict[str, Any] = {
            "latents": torch.randn(2, 4, 4, 8, 8, generator=generator),
            "timesteps": torch.rand(2, 4, generator=generator),
            "roles": torch.randint(4, (2, 4), generator=generator),
            "conditioning": Conditioning(torch.randn(2, 32, generator=generator)),
        }
        return {name: value.to(device) for name, value in inputs.items()}


class TestModel(Config, mixins.ModelTesterMixin):
    pass


class TestMemory(Config, mixins.MemoryTesterMixin):
    pass


class TestTraining(Config, mixins.TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self) -> None:
        super().test_gradient_checkpointing_is_applied({"RandomDiT"})


class TestCompile(Config, mixins.TorchCompileTesterMixin):
    pass


class TestLora(Config, mixins.LoraTesterMixin):
    exceptions = {  # noqa: RUF012
        "test_correct_lora_configs_with_different_ranks": "looks for layers that are called to_k",
        "test_lora_layerwise_casting_inference": "casts inputs in dicts and lists, and not those in a Conditioning",
    }


class TestFirstBlockCache(Config, mixins.FirstBlockCacheTesterMixin):
    pass
