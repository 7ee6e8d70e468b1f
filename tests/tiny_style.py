"""A new style for the bundled model: its example scenes as white on blue paper, encoded for training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "mmdit/assets/scenes64"
SCENES = ROOT / "mmdit/assets/scenes64_examples"
PAPER, INK = np.array([18.0, 52.0, 140.0]), np.array([225.0, 238.0, 255.0])


def blueprint(rgb: np.ndarray) -> np.ndarray:
    """(…, 3) uint8 -> the colour between paper and ink that its brightness says."""
    brightness = rgb.astype(np.float64).mean(-1, keepdims=True) / 255
    return np.round(PAPER + (INK - PAPER) * brightness).astype(np.uint8)


def distance_to_style(rgb: np.ndarray) -> float:
    """RMS distance of colours (…, 3) uint8 from the line between paper and ink, in steps of 1 / 255."""
    along = (INK - PAPER) / np.linalg.norm(INK - PAPER)
    offset = rgb.reshape(-1, 3).astype(np.float64) - PAPER
    aside = offset - (offset @ along)[:, None] * along
    return float(np.sqrt((aside**2).sum(-1).mean()))


def save_style_latents(folder: Path) -> Path:
    """Write the example scenes in the new style, and their latents, split "train"; returns the latents' folder."""
    from diffusers import AutoencoderKL

    from mmdit.data.manifest import modalities_from_dataset, read_dataset_info
    from mmdit.encoders.precompute import encode_dataset

    data, latents = folder / "data", folder / "latents"
    shutil.copytree(SCENES, data)
    (data / "test").rename(data / "train")
    for path in (data / "train/rgb").iterdir():
        Image.fromarray(blueprint(np.asarray(Image.open(path).convert("RGB")))).save(path)
    vae = AutoencoderKL.from_pretrained(MODEL / "vae")
    settings = {"depth": {"space": "depth", "quantiles": [0.0, 1.0]}}
    modalities = modalities_from_dataset(read_dataset_info(data), settings=settings)
    encode_dataset(data, latents, vae.eval(), modalities, say=lambda text: None)
    return latents
