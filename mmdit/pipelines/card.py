"""What ``save_pretrained`` writes beside the components: a model card, and the file by which diffusers finds the class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmdit.modalities import IMAGE, Modality
from mmdit.storage.files import write_atomically
from mmdit.storage.json_text import read_bounded
from mmdit.storage.versions import DISTRIBUTION, version_of
from mmdit.storage.yaml_text import load_yaml

CARD = "README.md"
PHOTOGRAPHS = "photographs"  # in the card's first lines: whether the model saw any in training
CODE = "pipeline.py"
# Fixed: it says where the class is and does nothing else. Only diffusers reads it, if told trust_remote_code=True.
CODE_TEXT = '''"""Tells diffusers where the class of this folder is: in the package multimodal-dit, which must be installed."""

from mmdit import MultimodalDiTPipeline

__all__ = ["MultimodalDiTPipeline"]
'''
_MOST_NAMES = 40
_MOST_BYTES = 1 << 20
_FENCE = "---\n"
_TAGS = {"depth": "depth-estimation", "normal": "surface-normals", "segmentation": "image-segmentation"}


def write_code(folder: Path) -> None:
    """Write ``pipeline.py``, the same for every model."""
    write_atomically(folder / CODE, CODE_TEXT.encode())


def write_card(folder: Path, card: str) -> None:
    """Write the model card, unless there is one."""
    if not (folder / CARD).exists():
        write_atomically(folder / CARD, card.encode())


def card_facts(folder: Path) -> dict[str, Any]:
    """The first lines of a folder's model card, YAML between two lines of dashes; empty where there are none to be read."""
    try:
        text = read_bounded(folder / CARD, _MOST_BYTES).decode("utf-8-sig")
    except (OSError, ValueError):
        return {}
    if not text.startswith(_FENCE) or _FENCE not in text[len(_FENCE) :]:
        return {}
    try:
        facts = load_yaml(text[len(_FENCE) :].split(_FENCE)[0])
    except yaml.YAMLError:
        return {}
    return facts if isinstance(facts, dict) else {}


def saw_photographs(folder: Path) -> bool | None:
    """Whether the model saw any in training, as its card says; None = unknown."""
    saw = card_facts(folder).get(PHOTOGRAPHS)
    return saw if isinstance(saw, bool) else None


def model_card(
    modalities: Mapping[str, Modality],
    categories: Mapping[int, str],
    facts: Mapping[str, Any],
    *,
    prompts: bool,
    photographs: bool | None = None,
) -> str:
    """Text of a model card, Markdown with the Hub's metadata.

    Args:
        modalities: of the pipeline.
        categories: class id -> name.
        facts: rows of the table, name -> value.
        prompts: whether it reads prompts.
        photographs: whether it saw any in training; None = unknown.
    """
    tags = [*(_TAGS[name] for name in modalities if name in _TAGS), "multimodal-dit", "flow-matching"]
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    kinds = "\n".join(f"- `{name}`: {_meaning(modality)}" for name, modality in modalities.items())
    names = [name.split(",")[0].strip() for name in categories.values()]
    listed = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
    known = f"{len(names)}: {listed}" if names else "none have names"
    usage = [
        "from mmdit import MultimodalDiTPipeline",
        "",
        'pipe = MultimodalDiTPipeline.from_pretrained("FOLDER")',
        f"out = pipe({_label(names)}seed=0)  # {', '.join(f'out.{name}' for name in modalities)}",
    ]
    if IMAGE in modalities and len(modalities) > 1:
        usage.append("out = pipe(image)  # a PIL image: the other modalities are estimated")
    if prompts:
        usage.append('out = pipe(prompt="...")')
    return f"""---
license: unknown
library_name: diffusers
tags: [{", ".join(tags)}]
{"" if photographs is None else f"{PHOTOGRAPHS}: {str(photographs).lower()}" + chr(10)}---

# Multimodal diffusion transformer: {", ".join(modalities)}

A model of {DISTRIBUTION}: it generates all of these aligned with each other, and completes any subset of them.

| | |
|---|---|
{rows}

## Modalities

{kinds}

## Categories

{known}

## Use

```bash
pip install {DISTRIBUTION}
```

```python
{chr(10).join(usage)}
```

`diffusers.DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)` gives the same class: `{CODE}` imports it from
the installed package and does nothing else.

## Licence and provenance

Not known to the program that wrote this card: say here what the training data and the initial weights allow, and put the
licence into the first lines (`license:`). Made with {DISTRIBUTION} {version_of(DISTRIBUTION)}.
"""


def lora_card(base: str, settings: Mapping[str, Any]) -> str:
    """Text of the model card of a LoRA: the model it is for, as it was named in training, and how it is loaded."""
    targets = ", ".join(settings["target_modules"])
    made = f"{DISTRIBUTION} {version_of(DISTRIBUTION)}"
    return f"""---
license: unknown
library_name: diffusers
tags: [lora, multimodal-dit]
---

# LoRA for {base}

Rank {settings["r"]}, alpha {settings["lora_alpha"]:g}, of the layers {targets}. Made with {made}.

```python
from mmdit import MultimodalDiTPipeline

pipe = MultimodalDiTPipeline.from_pretrained("{base}")
pipe.load_lora_weights("FOLDER")  # pip install '{DISTRIBUTION}[lora]'
```

## Licence and provenance

Not known to the program that wrote this card: say here what the training data and {base} allow.
"""


def _label(names: list[str]) -> str:
    return f"{names[0]!r}, ".replace("'", '"') if names else ""


def _meaning(modality: Modality) -> str:
    about = {
        "rgb": "PIL images",
        "depth": "float32 (N, H, W), relative depth from 0 to 1",
        "normal": "float32 (N, H, W, 3), unit vectors in the camera frame: x right, y up, z towards the viewer",
        "segmentation": "int64 (N, H, W), label ids",
    }
    text = about.get(modality.codec, f"codec {modality.codec}")
    classes = modality.to_dict().get("classes") or []
    return f"{text} of {len(classes)} classes" if classes else text
