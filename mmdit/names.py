"""Names that areas which never import each other must agree on, each said once."""

from __future__ import annotations

# What describes a dataset, its latents and a sample that a command made, each in its own folder.
DATASET, LATENTS, METADATA = "dataset.json", "latents.json", "metadata.json"

# What the transformer's output is: noise - data, or the clean latent. ``models`` declares it, ``flow`` converts it.
VELOCITY, SAMPLE = "velocity", "sample"
PREDICTION_TYPES = (VELOCITY, SAMPLE)

# The quantity that relative depth is linear in: metres, or their inverse.
DEPTH_SPACES = ("depth", "disparity")

# Segmentation classes of the scenes that are not objects.
BACKGROUND_CLASSES = ("floor", "wall")
# What captions call floor and wall together, as another picture shows them.
STYLE_WORD = "scene"
# What leads to these words where a picture shows what they mean: "a red cone in the style of the {scene}".
GROUND_LEADS = {"floor": "on a", "wall": "against a", STYLE_WORD: "in the style of the"}

# How captions say where the first of two objects stands to the second, as the camera sees them.
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "front": ("in front of", "before"),
    "behind": ("behind", "at the back of"),
}
