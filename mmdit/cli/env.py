"""``mmdit env``: what an issue report needs. Works without a GPU, without triton, and where a package is broken."""

from __future__ import annotations

import os
import platform
import sys

from mmdit.errors import one_line
from mmdit.storage.versions import DISTRIBUTION, version_of

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "timm",
    "lightning",
    "einops",
    "safetensors",
    "jsonargparse",
    "numpy",
    "pillow",
    "triton",
    "mitsuba",
    "trimesh",
    "torchmetrics",
    "gradio",
)
_PREFIXES = (
    "MMDIT_",
    "TRITON_",
    "CUDA_VISIBLE",
    "HIP_VISIBLE",
    "OMP_NUM",
    "MKL_NUM",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "SLURM_JOB_",
)


def env() -> None:
    """Print versions, devices and kernels: what an issue report needs."""
    sections = {"system": _system(), "packages": {name: version_of(name) for name in PACKAGES}}
    sections |= {"devices": _devices(), "kernels": _kernels(), "models": _models()}
    sections["environment"] = {key: value for key, value in sorted(os.environ.items()) if key.startswith(_PREFIXES)}
    print(f"mmdit {version_of(DISTRIBUTION)}")
    for title, values in sections.items():
        print(f"\n{title}")
        for key, value in values.items():
            print(f"  {key}: {value}")
        if not values:
            print("  none")


def _system() -> dict[str, str]:
    from mmdit.sources.processes import physical_memory, usable_cores

    found = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "processor": f"{platform.processor() or platform.machine()}, {usable_cores()} usable cores",
    }
    if (memory := physical_memory()) is not None:
        found["memory"] = f"{memory / 2**30:.1f} GiB"
    return found


def _devices() -> dict[str, str]:
    try:
        import torch
    except Exception as error:  # the very thing that is to be reported
        return {"torch": f"can't be imported: {type(error).__name__}: {error}"}
    built_for = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    found = {"torch built for": built_for, "threads": str(torch.get_num_threads())}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        found[f"cuda:{index}"] = (
            f"{properties.name}, compute capability {properties.major}.{properties.minor}, {memory}"
        )
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    if len(found) == 2:
        found["GPU"] = "none"
    return found


def _kernels() -> dict[str, str]:
    try:
        import mmdit_kernels

        return dict(mmdit_kernels.status())
    except Exception as error:  # the very thing that is to be reported
        return {"mmdit_kernels": f"not usable: {type(error).__name__}: {one_line(error)}"}


def _models() -> dict[str, str]:
    from mmdit.pipelines.loading import bundled_models

    return {name: str(folder) for name, folder in bundled_models().items()}
