"""ComfyUI nodes, as an example: put this file into ``ComfyUI/custom_nodes/mmdit/__init__.py`` of an installation that has mmdit.

"Load mmdit" loads a pipeline folder, a Hub id or the bundled model; "mmdit generate" goes from words or a category, and any
image, depth or normals, to all modalities; "mmdit understand" goes from images to depth, normals and segmentation. ComfyUI's
images are float32 (B, H, W, 3) in [0, 1], its masks (B, H, W).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from mmdit import MultimodalDiTPipeline
from mmdit.errors import UserError

MODEL = "MMDIT_PIPELINE"
SHOWN = ("rgb", "depth", "normal", "segmentation")


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """ComfyUI's images, of 1, 3 or 4 channels -> PIL images. Raises UserError for NaN and infinity."""
    if not torch.isfinite(images).all():
        raise UserError("an image holds NaN or infinity: give numbers from 0 to 1")
    pixels = (images.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in pixels]


def to_comfy(pictures: list[np.ndarray]) -> torch.Tensor:
    """Pictures (H, W, 3) uint8 -> ComfyUI's images."""
    return torch.from_numpy(np.stack(pictures)).float() / 255


def outputs(pipe: MultimodalDiTPipeline, out: Any) -> tuple[torch.Tensor, ...]:
    """Each modality in ``SHOWN`` as images; grey where the model lacks it."""
    found = []
    for name in SHOWN:
        if name in pipe.codecs and out[name] is not None:
            codec = pipe.codecs[name]
            found.append(to_comfy([codec.picture(np.asarray(array)) for array in out[name]]))
        else:
            height, width = pipe.native_shape
            found.append(torch.full((1, height, width, 3), 0.5))
    return tuple(found)


class LoadMMDiT:
    """A model's name -> the model."""

    CATEGORY, FUNCTION = "mmdit", "load"
    RETURN_TYPES, RETURN_NAMES = (MODEL,), ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("STRING", {"default": "scenes64"}), "device": (["auto", "cpu", "cuda"],)}}

    def load(self, model: str, device: str) -> tuple[MultimodalDiTPipeline]:
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        return (MultimodalDiTPipeline.from_pretrained(model).to(where),)


class GenerateMMDiT:
    """Words or a category, and any given modalities, one or a batch -> all modalities, ``num_images`` of each."""

    CATEGORY, FUNCTION = "mmdit", "generate"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",) * 4, SHOWN

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": (MODEL,),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32 - 1}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000}),  # 0 = the model's own, as of guidance
                "guidance": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 30.0, "step": 0.1}),
                "num_images": ("INT", {"default": 1, "min": 1, "max": 64}),
            },
            "optional": {
                "category": ("STRING", {"default": ""}),
                "prompt": ("STRING", {"default": "", "multiline": True}),
                "subject": ("IMAGE",),  # for each {} of the prompt, in order
                "image": ("IMAGE",),
                "depth": ("MASK",),  # relative, in the model's own space
                "normal": ("IMAGE",),
            },
        }

    def generate(
        self,
        model: MultimodalDiTPipeline,
        seed: int,
        steps: int,
        guidance: float,
        num_images: int,
        category: str = "",
        prompt: str = "",
        subject: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
        depth: torch.Tensor | None = None,
        normal: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        conditions: dict[str, list[Any]] = {}  # of one each, or of batches of one size
        if image is not None:
            conditions["rgb"] = to_pil(image)
        if depth is not None:
            conditions["depth"] = list(depth.reshape(-1, *depth.shape[-2:]).cpu().numpy())
        if normal is not None:
            conditions["normal"] = to_pil(normal)
        num_samples = num_images * max(map(len, conditions.values()), default=1)
        asked: dict[str, Any] = {"class_labels": category or None, "prompt": prompt or None}
        if subject is not None:
            asked["subjects"] = to_pil(subject)
        out = model(
            **{name: value for name, value in asked.items() if value is not None},
            conditions=conditions or None,
            num_images=num_images,
            num_inference_steps=steps or None,
            guidance_scale=guidance or None,
            generator=[torch.Generator().manual_seed(seed + i) for i in range(num_samples)],
        )
        return outputs(model, out)


class UnderstandMMDiT:
    """Images -> depth, normals and segmentation, in one step."""

    CATEGORY, FUNCTION = "mmdit", "understand"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",) * 4, SHOWN

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": (MODEL,), "images": ("IMAGE",)}}

    def understand(self, model: MultimodalDiTPipeline, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return outputs(model, model(to_pil(images), match_input_resolution=True))


NODE_CLASS_MAPPINGS = {"LoadMMDiT": LoadMMDiT, "GenerateMMDiT": GenerateMMDiT, "UnderstandMMDiT": UnderstandMMDiT}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LoadMMDiT": "Load mmdit",
    "GenerateMMDiT": "mmdit generate",
    "UnderstandMMDiT": "mmdit understand",
}
