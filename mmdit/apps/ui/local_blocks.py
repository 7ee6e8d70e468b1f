"""Gradio's page, which here takes the files that visitors upload, and no addresses."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import gradio as gr

_LONGEST = 80  # characters of an address that are said


class LocalBlocks(gr.Blocks):
    """A page that fetches nothing: gradio itself would download a file that a client of its API names by address.

    Args:
        title: of the page.
    """

    def __init__(self, title: str) -> None:
        super().__init__(title=title, analytics_enabled=False, delete_cache=(600, 3600))

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **named: Any) -> Any:
        """As gradio's, which moves the files of a request to its cache. Raises gradio.Error for an address among them."""
        for address in addresses(inputs):
            given = address if len(address) <= _LONGEST else f"{address[:_LONGEST]}…"
            raise gr.Error(
                f"a file is given as {html.escape(repr(given), quote=False)}, and nothing is fetched from elsewhere: "
                "download it, and upload the file",
                duration=None,
                print_exception=False,
            )
        return await super().preprocess_data(block_fn, inputs, *rest, **named)


def addresses(value: Any) -> Iterator[str]:
    """Addresses of the web in place of files, anywhere in the inputs of a request."""
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and path.lower().lstrip().startswith(("http:", "https:")):
            yield path
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from addresses(each)
