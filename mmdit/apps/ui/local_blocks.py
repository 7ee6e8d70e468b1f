"""Gradio's page, which here takes the files that visitors upload, and no addresses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from mmdit.apps.ui.errors import one_line
from mmdit.errors import UserError, first_line

_LONGEST = 80  # characters of a value that are said


class LocalBlocks(gr.Blocks):
    """A page that fetches nothing: gradio itself would download a file that a client of its API names by address.

    Args:
        title: of the page.
    """

    def __init__(self, title: str) -> None:
        super().__init__(title=title, analytics_enabled=False, delete_cache=(600, 3600))

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **named: Any) -> Any:
        """As gradio's, which moves the files of a request to its cache.

        Raises:
            gradio.Error: of one line, for an address among them, and for whatever else the page itself would not send.
        """
        with one_line():
            for address in addresses(inputs):
                raise UserError(
                    f"a file is given as {shortened(address)}, and nothing is fetched from elsewhere: download it, and "
                    "upload the file"
                )
            for field, value in zip(block_fn.inputs, inputs, strict=False):
                check_kind(field, value)
            try:
                return await super().preprocess_data(block_fn, inputs, *rest, **named)
            except Exception as error:  # gradio's fields raise anything for what their page would not send
                cause = error.__cause__ or error
                raise UserError(
                    f"an input can't be read: {first_line(Exception(getattr(cause, 'message', cause)))}"
                ) from None


def check_kind(field: Any, value: Any) -> None:
    """Raise UserError for a value of another kind than a field of the page has, which gradio takes or rounds."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    kinds = [
        (gr.Checkbox, isinstance(value, bool), "true or false"),
        (gr.CheckboxGroup, isinstance(value, list), "a list of choices"),
        (gr.Slider, is_number, "a number"),
        (gr.Number, value is None or (is_number and float(value).is_integer()), "a whole number"),
    ]
    for kind, fits, right in kinds:
        if isinstance(field, kind) and not fits:
            raise UserError(f"{field.label.partition(' (')[0]} is {shortened(value)}: give {right}")


def shortened(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def addresses(value: Any) -> Iterator[str]:
    """Addresses of the web in place of files, anywhere in the inputs of a request."""
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and path.lower().lstrip().startswith(("http:", "https:")):
            yield path
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from addresses(each)
