"""``mmdit export``: a model in the formats of other programs."""

from __future__ import annotations

from pathlib import Path

from mmdit.bounds import NonNegativeNumber
from mmdit.cli.common.model import BUNDLED_MODEL


def export_onnx(
    output: Path,
    model: str = BUNDLED_MODEL,
    lora: str | None = None,
    lora_scale: NonNegativeNumber = 1.0,
) -> None:
    """Export a model's networks as ONNX graphs, and compare them with PyTorch.

    Writes OUTPUT/transformer.onnx (one step: latents, timesteps, roles and class labels to velocity), for a model of prompts
    OUTPUT/transformer_prompt.onnx (the same with an encoded prompt, from pipe.encode_prompt, in place of class labels),
    OUTPUT/vae_encoder.onnx and OUTPUT/vae_decoder.onnx (images of all modalities to latents, and back), for any number of samples
    at the model's size, in float32; and OUTPUT/export.json, which says what their inputs mean. Each graph is run with
    onnxruntime beside PyTorch, and the largest difference is printed. The same command again replaces its own results.

    Args:
        output: Folder of the graphs.
        model: A bundled model's name, a pipeline folder, or a Hub id.
        lora: LoRA weights that are added to the model's: a file, a folder such as a run's lora/, or a Hub id.
        lora_scale: How much of them; 0 = none, 1 = all.
    """
    from mmdit.cli.common.model import load_pipeline

    pipe = load_pipeline(model, "cpu", "float32", lora=lora, lora_scale=lora_scale)
    from mmdit.pipelines.onnx_export import export_onnx as write

    write(pipe, output)
