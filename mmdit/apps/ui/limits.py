"""How much one visitor may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from mmdit.errors import UserError

MAX_SEED = 2**32 - 1  # a browser's numbers are exact up to 2^53


@dataclass(frozen=True)
class Limits:
    """Limits of the browser app.

    Args:
        upload_megabytes: size of an upload, and of anything else that is sent.
        megapixels: of an image that is read.
        side: longer side in pixels of an image that is worked on, and so of its results; larger ones are shrunk.
        steps: denoising steps.
        images: samples of one request.
        characters: of a prompt.
        waiting: requests in the queue.
    """

    upload_megabytes: int = 20
    megapixels: int = 50
    side: int = 2048
    steps: int = 100
    images: int = 4
    characters: int = 1000
    waiting: int = 64

    def check_count(self, what: str, value: float, most: int, least: int = 1) -> int:
        """A whole number from ``least`` to ``most``. Raises UserError for another value."""
        if isinstance(value, bool) or value != int(value) or not least <= value <= most:
            raise UserError(f"{what} is {value:g}: give a whole number from {least} to {most}")
        return int(value)

    def check_text(self, what: str, text: str) -> str:
        """The text without space around it. Raises UserError for one that is too long."""
        if len(text) > self.characters:
            raise UserError(f"{what} has {len(text)} characters: give at most {self.characters}")
        return text.strip()

    def check_pixels(self, what: str, width: int, height: int) -> None:
        """Raises UserError for an image of more pixels than are read."""
        if width * height > self.megapixels * 1_000_000:
            raise UserError(
                f"{what}: has {width} x {height} pixels: give at most {self.megapixels} million, such as a smaller copy"
            )

    def shrink(self, image: Image.Image) -> Image.Image:
        """The image, or a smaller copy whose longer side is ``side``."""
        if max(image.size) <= self.side:
            return image
        copy = image.copy()
        copy.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        return copy
