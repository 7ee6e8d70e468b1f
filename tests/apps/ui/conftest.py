"""The browser app on a tiny model, in this process."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmdit.apps.ui.limits import Limits
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

LIMITS = Limits(upload_megabytes=1, megapixels=1, side=96, steps=30, images=3, characters=80, waiting=64)


@pytest.fixture(scope="session")
def tiny_pipe(tiny_pipeline_dir: Path) -> MultimodalDiTPipeline:
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def serving(pipe: MultimodalDiTPipeline, **options: object) -> Iterator[str]:
    """Serve a model on a free port; yields the URL."""
    from mmdit.apps.ui.server import address_of, app_of, make_server, open_socket

    ready = threading.Event()
    with open_socket("127.0.0.1", 0) as opened, app_of(pipe, **options) as app:  # type: ignore[arg-type]
        server = make_server(app, ready.set)
        thread = threading.Thread(target=lambda: server.run(sockets=[opened]), daemon=True)
        thread.start()
        try:
            assert ready.wait(60)
            yield address_of(opened)
        finally:
            server.should_exit = True
            thread.join(30)
            if thread.is_alive():  # as a second Ctrl-C
                server.force_exit = True
                faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
                thread.join(30)
            assert not thread.is_alive(), "the server did not end within a minute"


@pytest.fixture(scope="session")
def serve() -> Callable[..., contextlib.AbstractContextManager[str]]:
    """``serving``, for tests with an app of their own."""
    return serving


@pytest.fixture(scope="session")
def url(tiny_pipe: MultimodalDiTPipeline) -> Iterator[str]:
    """Address of the app of a tiny model, with the limits of ``LIMITS`` and the examples of the package."""
    from mmdit.cli.ui import EXAMPLES, read_examples

    with serving(tiny_pipe, model="tiny", limits=LIMITS, examples=read_examples(EXAMPLES), interval=0.0) as address:
        yield address
