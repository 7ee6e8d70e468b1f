"""Errors as one line in the page."""

from __future__ import annotations

import functools
import html
import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio

from mmdit.errors import UserError


@contextmanager
def one_line() -> Iterator[None]:
    """Turn an error into one that gradio shows in the page: what is wrong with the input, or that the server failed."""
    try:
        yield
    except UserError as error:  # the page reads HTML
        raise gradio.Error(html.escape(str(error), quote=False), duration=None, print_exception=False) from None
    except gradio.Error:
        raise
    except Exception as error:
        traceback.print_exc()
        text = f"the server failed with {type(error).__name__}; its log says more"
        raise gradio.Error(text, duration=None, print_exception=False) from None


def shown(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a handler of the page, a function or a generator, raise errors as ``one_line`` does."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def steps(*values: Any, **named: Any) -> Iterator[Any]:
            with one_line():
                yield from function(*values, **named)

        return steps

    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        with one_line():
            return function(*values, **named)

    return call
