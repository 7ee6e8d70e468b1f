"""What a split of rendered scenes is made from: numbered scenes, and what ``dataset.json`` says about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmdit.names import BACKGROUND_CLASSES
from mmdit.sources.scenes.layout import Layout
from mmdit.sources.scenes.render import render_layout


@dataclass(frozen=True)
class SceneSample:
    """One scene, every map from the same camera.

    rgb: uint8 (H, W, 3), sRGB; depth: float32 (H, W), metres along the optical axis; normal: float32 (H, W, 3), unit
    vectors in the camera frame (x right, y up, z towards the viewer); segmentation: uint8 (H, W), ids of
    the classes; surface: uint8 (H, W), 0 floor, 1 wall, 2 + k layout.objects[k].
    """

    rgb: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    segmentation: np.ndarray
    category: str
    layout: Layout
    surface: np.ndarray


class SceneSource(ABC):
    """Numbered scenes of a split, each a function of its number and of this object, which is pickled to the workers.

    Subclasses are dataclasses with the fields ``seed``, ``split`` and ``size``.
    """

    seed: int

    split: str
    size: int

    @property
    @abstractmethod
    def categories(self) -> tuple[str, ...]:
        """Names of the objects."""

    @property
    @abstractmethod
    def depth_scale(self) -> float:
        """Metres per unit of the 16-bit depth."""

    @property
    @abstractmethod
    def licence(self) -> str:
        """Of the pictures."""

    @property
    def libraries(self) -> tuple[str, ...]:
        """Whose versions the provenance names."""
        return ("mitsuba", "trimesh", "numpy")

    @property
    @abstractmethod
    def classes(self) -> list[dict[str, Any]]:
        """Segmentation classes: floor 0, wall 1, category k is 2 + k."""

    @abstractmethod
    def layout(self, index: int) -> Layout:
        """Draw scene ``index``."""

    @abstractmethod
    def category(self, index: int) -> str | None:
        """The category of scene ``index``; None where it has two subjects and no main one."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that decides the scenes besides the split, as JSON values: a folder holds scenes of the same settings."""

    def records(self) -> dict[str, Any]:
        """What else the provenance says."""
        return {}

    def references(self, layout: Layout, index: int, number: int) -> list[int]:
        """Other scenes that show ``layout.objects[number]``, the clearest one first."""
        return []

    def same_ground(self, index: int) -> int | None:
        """Another scene with the same floor and wall, if there is one."""
        return None

    def sample(self, index: int) -> SceneSample:
        """Render scene ``index``."""
        return self.render(self.layout(index))

    def render(self, layout: Layout) -> SceneSample:
        """Render a layout of this source, or one that was changed, such as by another camera."""
        rgb, depth, normal, surface = render_layout(layout, self.size)
        first = len(BACKGROUND_CLASSES)
        class_ids = [*range(first), *(first + self.categories.index(placed.category) for placed in layout.objects)]
        labels = np.asarray(class_ids, dtype=np.uint8)[surface]
        return SceneSample(rgb, depth, normal, labels, layout.category, layout, surface)
