"""Real pictures of a split, and what the instrument sees in them: each read and looked at once, whatever asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdit.metrics.arrays import Array
from mmdit.metrics.prompts.cases import PromptedSplit
from mmdit.metrics.prompts.instrument import Instrument, Seen
from mmdit.metrics.prompts.views import Shown, read_shown
from mmdit.metrics.tasks import reconstruct
from mmdit.modalities import IMAGE

# The number of a sample, or another picture.
Source = int | Shown


class RealPictures:
    """Pictures by their source.

    Args:
        split: the samples.
        instrument: what looks.
        pipe: whose autoencoder they can be passed through; None = none.
    """

    def __init__(self, split: PromptedSplit, instrument: Instrument, pipe: Any = None) -> None:
        self.split, self.instrument, self.pipe = split, instrument, pipe
        self._read: dict[Source, Array] = {}
        self._seen: dict[tuple[Source, bool], Seen] = {}

    def read(self, source: Source) -> Array:
        """uint8 (H, W, 3); a sample at the model's size, another picture as it is. Raises UserError if it can't be read."""
        if source not in self._read:
            self._read[source] = self.split.truth(source).maps[IMAGE] if isinstance(source, int) else read_shown(source)
        return self._read[source]

    def look(self, sources: Sequence[Source], through_vae: bool = False) -> list[Seen]:
        """What the instrument sees in pictures, as they are or through the autoencoder and back."""
        new = [source for source in dict.fromkeys(sources) if (source, through_vae) not in self._seen]
        pictures = [self._rebuilt(source) if through_vae else self.read(source) for source in new]
        for source, seen in zip(new, self.instrument.look(pictures), strict=True):
            self._seen[source, through_vae] = seen
        return [self._seen[source, through_vae] for source in sources]

    def _rebuilt(self, source: Source) -> Array:
        assert self.pipe is not None
        encoded = self.pipe.codecs[IMAGE].encode(self.read(source))[None]
        return reconstruct(self.pipe, {IMAGE: encoded})[IMAGE][0]
