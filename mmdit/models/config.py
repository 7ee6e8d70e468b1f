"""Sizes of the transformer, by name. S, B, L, XL: DiT / SiT (arXiv 2212.09748, 2401.08740); the small ones are ours."""

from __future__ import annotations

from mmdit.errors import unknown_name

SIZES: dict[str, dict[str, int]] = {
    "debug": {"hidden_size": 32, "depth": 2, "num_heads": 2},
    "nano": {"hidden_size": 192, "depth": 8, "num_heads": 3},
    "micro": {"hidden_size": 256, "depth": 10, "num_heads": 4},
    "tiny": {"hidden_size": 384, "depth": 8, "num_heads": 6},
    "S": {"hidden_size": 384, "depth": 12, "num_heads": 6},
    "B": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "L": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
    "XL": {"hidden_size": 1152, "depth": 28, "num_heads": 16},
}


def get_size(name: str) -> dict[str, int]:
    """Return ``hidden_size``, ``depth`` and ``num_heads`` of a named size. Raises UserError for an unknown name."""
    if name not in SIZES:
        raise unknown_name("model size", name, SIZES)
    return dict(SIZES[name])
