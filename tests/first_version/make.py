"""Makes the first version's artefacts: run with the first version on the path."""

# ruff: noqa: E402

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, "tests")
root = Path(sys.argv[1])
shutil.rmtree(root, ignore_errors=True)
root.mkdir(parents=True)
from diffusers import AutoencoderKL
from mmdit.data.scene_layout import CATEGORY_NAMES
from mmdit.data.scenes import SEGMENTATION_CLASSES
from mmdit.modality import get_modalities

from mmdit.flow.schedulers import make_scheduler
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

torch.manual_seed(0)
mods = get_modalities(["rgb", "depth", "normal", "segmentation"])
mods["segmentation"] = mods["segmentation"].replace(classes=list(SEGMENTATION_CLASSES))
t = MultimodalDiT(
    sample_size=16,
    hidden_size=16,
    depth=2,
    num_heads=2,
    num_classes=len(CATEGORY_NAMES),
    alignment_depth=1,
    alignment_dim=8,
    alignment_hidden_size=8,
)
for p in t.parameters():
    torch.nn.init.normal_(p, std=0.1)
vae = AutoencoderKL(
    in_channels=12,
    out_channels=12,
    block_out_channels=(8, 8),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=4,
    latent_channels=4,
    sample_size=32,
    layers_per_block=1,
)
pipe = MultimodalDiTPipeline(t.eval(), vae.eval(), make_scheduler("euler"), mods, dict(enumerate(CATEGORY_NAMES)))
pipe.save_pretrained(root / "pipeline")
pipe.set_progress_bar_config(disable=True)
out = {}


def g():
    return torch.Generator().manual_seed(0)


r = pipe(class_labels=["torus", "cone"], num_inference_steps=3, guidance_scale=2.0, generator=g(), output_type="pt")
for n in mods:
    out[f"generate.{n}"] = r[n].contiguous()
image = (np.arange(64 * 64 * 3).reshape(64, 64, 3) % 251).astype(np.uint8)
r = pipe(conditions={"rgb": Image.fromarray(image)}, num_inference_steps=1, generator=g(), output_type="pt")
for n in mods:
    out[f"understand.{n}"] = r[n].contiguous()
depth = np.linspace(1, 5, 64 * 64, dtype=np.float32).reshape(64, 64)
r = pipe(conditions={"depth": depth}, class_labels="torus", num_inference_steps=2, generator=g(), output_type="latent")
out["condition.latents"] = r.latents.contiguous()
small = {k: v if "latents" in k else v[..., ::4, ::4] if k.endswith(".rgb") else v[:, ::4, ::4] for k, v in out.items()}
save_file({k: v.contiguous() for k, v in small.items()}, root / "outputs.safetensors")
# dataset
rng = np.random.default_rng(0)
data = root / "dataset"
rows = []
for i in range(6):
    n = rng.normal(size=(16, 16, 3))
    n /= np.linalg.norm(n, axis=-1, keepdims=True)
    arrays = {
        "rgb": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
        "depth": rng.integers(1000, 9000, (16, 16)).astype(np.uint16),
        "normal": np.round((n + 1) / 2 * 255).astype(np.uint8),
        "segmentation": rng.choice([0, 1, 5], (16, 16)).astype(np.uint8),
    }
    row = {"id": f"{i:03d}", "category": ["torus", "cone"][i % 2]}
    for name, a in arrays.items():
        if name == "normal" and i == 3:
            continue
        row[name] = f"{name}/{i:03d}.png"
        (data / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(a).save(data / "train" / row[name])
    rows.append(row)
(data / "dataset.json").write_text(
    json.dumps(
        {
            "modalities": list(mods),
            "categories": ["torus", "cone"],
            "segmentation_classes": [
                {"id": 0, "name": "floor", "color": [0, 0, 0]},
                {"id": 1, "name": "wall", "color": [0, 0, 255]},
                {"id": 5, "name": "torus", "color": [255, 0, 0]},
            ],
            "depth_scale": 0.001,
            "licence": "CC0",
            "provenance": "random numbers",
        }
    )
)
(data / "train" / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def cli(*a):
    subprocess.run([sys.executable, "-m", "mmdit.cli.main", *map(str, a)], check=True)


cli(
    "data",
    "encode",
    "--data",
    data,
    "--output",
    root / "latents",
    "--vae",
    root / "pipeline" / "vae",
    "--mirrored",
    "false",
)
# a run on these latents: stopped at 2 of 4, and whole
common = [
    "--config",
    "configs/debug.yaml",
    "--data.path",
    root / "latents",
    "--data.val_split",
    "null",
    "--data.batch_size",
    4,
    "--model.hidden_size",
    16,
    "--model.depth",
    1,
    "--model.num_heads",
    2,
    "--trainer.validate_every",
    0,
    "--preview.num_samples",
    1,
    "--alignment",
    "null",
    "--optimizer.name",
    "muon",
]
cli("train", *common, "--trainer.max_steps", 4, "--trainer.checkpoint_every", 2, "--output", root / "whole")
