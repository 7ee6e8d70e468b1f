"""Understanding a video frame by frame, steadily.

All frames share one noise, so the same picture gives the same maps. What is left of flicker is the network's own error, which
differs from frame to frame. A recursive filter averages it where the picture stands still: each pixel of a map is the weighted
mean of what was known and what is new, and the weight of what was falls to 0 where the picture's colour changes, as in a
bilateral filter (Tomasi & Manduchi, 1998) along time. So nothing is dragged behind what moves, and a cut starts anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from mmdit.errors import UserError
from mmdit.modalities import IMAGE, Codec
from mmdit.pipelines.images import as_outputs
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.pipelines.pipeline_output import MultimodalDiTPipelineOutput

Raw = dict[str, np.ndarray]
TEMPORAL = 0.6  # measured by mmdit evaluate-video
SAME_COLOUR = 0.05  # change of a channel, of its range, at which the weight has fallen to 1/e
_NOT_OF_VIDEOS = (
    "class_labels",
    "conditions",
    "prompt",
    "num_images",
    "latents",
    "generator",
    "mask",
    "keep",
    "return_dict",
)


class Steady:
    """The filter: call it with the maps of each frame in turn.

    Args:
        codecs: of the modalities, which say how their values are averaged.
        temporal: weight of what was known where the picture stands still, 0 = none, to below 1.

    ``known`` is all that it remembers: modality -> array, of RGB the last frame itself; set it to go on.

    Raises:
        UserError: ``temporal`` is out of range.
    """

    def __init__(self, codecs: Mapping[str, Codec], temporal: float = TEMPORAL) -> None:
        check_temporal(temporal)
        self.codecs, self.temporal = codecs, temporal
        self.known: Raw = {}

    def __call__(self, raw: Raw) -> Raw:
        """Take raw arrays of one frame, (H, W[, channels]) with RGB among them; return them averaged, RGB as it is.

        Raises:
            UserError: a frame of another size than the one before.
        """
        picture, before = raw[IMAGE], self.known.get(IMAGE)
        if before is not None and before.shape != picture.shape:
            sizes = (f"{height} x {width}" for height, width in (picture.shape[:2], before.shape[:2]))
            raise UserError(
                "a frame is {} (height x width) and the one before {}: give frames of one size".format(*sizes)
            )
        if before is None:
            weight = np.zeros(picture.shape[:2], np.float32)
        else:
            change = np.abs(picture.astype(np.float32) - before.astype(np.float32)).max(axis=-1) / 255
            weight = np.float32(self.temporal) * np.exp(-np.square(change / SAME_COLOUR, dtype=np.float32))
        maps = [name for name in raw if name != IMAGE]
        known = {name: self.codecs[name].follow(self.known.get(name), raw[name], weight) for name in maps}
        self.known = {**known, IMAGE: picture}
        return {name: raw[name] if name == IMAGE else self.codecs[name].followed(known[name]) for name in raw}


def check_temporal(temporal: float) -> None:
    """Raise UserError for a weight that would never take anything new."""
    if not 0 <= temporal < 1:
        raise UserError(f"temporal is {temporal:g}: give a number from 0 (each frame for itself) to below 1")


def understand_video(
    pipe: MultimodalDiTPipeline,
    frames: Iterable[Image.Image],
    *,
    temporal: float = TEMPORAL,
    seed: int = 0,
    batch_size: int = 8,
    output_type: str = "pil",
    **options: Any,
) -> Iterator[MultimodalDiTPipelineOutput]:
    """Understand the frames of a video, ``batch_size`` of which are in memory at a time.

    Args:
        pipe: a model that takes RGB.
        frames: PIL images of one size, in order; any iterable, such as a generator.
        temporal: how much of what was known is kept where the picture stands still, from 0 (each frame for itself) to below 1.
        seed: of the noise, which all frames share.
        batch_size: frames that the network sees together; the outputs depend on it only by rounding.
        output_type: "pil", "np" or "pt", as in a call of the pipeline.
        options: others of the pipeline's, such as ``match_input_resolution`` or ``num_inference_steps``.

    Yields:
        The output of each frame, N = 1.

    Raises:
        UserError: a value out of range, frames that differ in size, or an option that doesn't fit.
    """
    check_temporal(temporal)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size is {batch_size!r}: give a whole number, at least 1")
    if refused := sorted(set(_NOT_OF_VIDEOS) & set(options)):
        raise UserError(f"{refused[0]} is given: frames are understood alone; leave it out")
    if output_type == "latent" or IMAGE not in pipe.modalities:
        what = "output_type is 'latent'" if output_type == "latent" else "the model takes no RGB"
        raise UserError(f"{what}: maps are needed to be averaged, by what the picture does")
    return _outputs(pipe, iter(frames), Steady(pipe.codecs, temporal), seed, batch_size, output_type, options)


def _outputs(
    pipe: MultimodalDiTPipeline,
    frames: Iterator[Image.Image],
    steady: Steady,
    seed: int,
    batch_size: int,
    output_type: str,
    options: Mapping[str, Any],
) -> Iterator[MultimodalDiTPipelineOutput]:
    size: tuple[int, int] | None = None
    while batch := list(islice(frames, batch_size)):
        for frame in batch:
            size = size or frame.size
            if frame.size != size:
                raise UserError(
                    f"a frame is {frame.width} x {frame.height}, the first {size[0]} x {size[1]}: give one size"
                )
        out: Any = pipe(batch, seed=[seed] * len(batch), **options)
        maps = {name: out.raw(name) for name in pipe.modalities}
        for number in range(len(batch)):
            raw = steady({name: values[number] for name, values in maps.items()})
            outputs = as_outputs(
                {name: values[None] for name, values in raw.items()}, pipe.codecs, output_type, pipe.execution_device
            )
            spread = {name: values[number : number + 1] for name, values in (out.uncertainty or {}).items()}
            yield MultimodalDiTPipelineOutput.from_modalities(outputs, pipe.codecs, spread or None)
