"""The server of the browser app: on this machine alone unless told otherwise, and nothing of it is fetched from elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from mmdit.apps.ui.examples import Example, fitting
from mmdit.apps.ui.limits import Limits
from mmdit.errors import UserError, first_line
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

_MEGABYTE = 2**20
_ENVELOPE = _MEGABYTE  # of a form around an upload
_ENDING = (signal.SIGINT, signal.SIGTERM)
_BY_SIGNAL = 128  # exit codes of a process that a signal ended, less its number
_ELSEWHERE = re.compile(r"/(file=https?:|proxy=)")  # gradio's own ways to have the server fetch something
# The page's own files and data alone: a browser loads nothing from elsewhere, whatever the page says.
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-ancestors 'self'",
    ]
)


def open_socket(host: str, port: int) -> socket.socket:
    """Bind a host and port, 0 = any free one. Raises UserError where that can't be done."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(
            f"--host {host!r} is not known ({error.strerror}): give 127.0.0.1, or an address of this machine"
        ) from None
    opened = socket.socket(family, kind)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen()
    except OSError as error:
        opened.close()
        raise UserError(
            f"--host {host} --port {port} can't be used ({error.strerror}): give another, or --port 0 for a free one"
        ) from None
    return opened


def address_of(opened: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = opened.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.contextmanager
def app_of(
    pipe: MultimodalDiTPipeline,
    *,
    model: str,
    limits: Limits | None = None,
    examples: Sequence[Example] = (),
    interval: float = 0.5,
) -> Iterator[Any]:
    """Make the ASGI app of a model; its files lie in a temporary folder, which goes with it.

    Args:
        pipe: the model; model: its name.
        limits: of requests.
        examples: those that don't fit the model are left out.
        interval: least time in seconds between previews.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="mmdit-ui-") as folder, _environment(GRADIO_TEMP_DIR=folder):
        import fastapi
        import gradio

        from mmdit.apps.ui.page import Page
        from mmdit.apps.ui.results import ResultStore
        from mmdit.apps.ui.tasks import Tasks
        from mmdit.apps.ui.theme import CSS, HEAD, THEME
        from mmdit.modalities.exr import has_exr

        store = ResultStore(Path(folder) / "results", pipe.codecs, exr=has_exr())
        tasks = Tasks(pipe, store, limits, model=model, interval=interval)
        gradio.set_static_paths([tasks.store.folder])
        page = Page(tasks, fitting(examples, pipe.codecs))
        app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.add_middleware(Guard, most_bytes=limits.upload_megabytes * _MEGABYTE + _ENVELOPE)
        mounted = gradio.mount_gradio_app(
            app,
            page.blocks,
            path="/",
            footer_links=["api"],
            run_history=False,
            show_error=True,
            max_file_size=limits.upload_megabytes * _MEGABYTE,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=THEME,
            css=CSS,
            head=HEAD,
        )

        def end() -> None:
            """Begin to end: no call of the model goes on, and open pages are told, who else stay connected."""
            tasks.sampler.close()
            mounted.routes[-1].app.stop_event.set()

        mounted.state.end, mounted.state.folder = end, folder
        try:
            yield mounted
        finally:
            tasks.sampler.close()


def make_server(app: Any, ready: Callable[[], None] = lambda: None) -> Any:
    """A uvicorn server for an app of ``app_of``: ``run(sockets=[opened])`` serves until interrupted, or until ``should_exit``.

    ``ready`` is called when requests are answered. A second interruption ends the process.
    """
    import uvicorn

    class Server(uvicorn.Server):
        ended_by: int | None = None  # a signal

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.end()
            await super().shutdown(sockets)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in _ENDING}
            try:
                yield
            finally:
                if self.ended_by is None:
                    for number, handler in before.items():
                        signal.signal(number, handler)
            if (
                self.ended_by is not None
            ):  # our handler stays until the process has ended, which waits for the model's step
                raise KeyboardInterrupt if self.ended_by == signal.SIGINT else SystemExit(_BY_SIGNAL + self.ended_by)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.ended_by is not None:  # asked for again
                shutil.rmtree(app.state.folder, ignore_errors=True)
                os._exit(_BY_SIGNAL + sig)
            self.ended_by, self.should_exit = sig, True

    server = Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, server_header=False))
    logging.getLogger("uvicorn.error").addFilter(_is_news)  # after Config, which sets the loggers up
    return server


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the log says more than that pages were open when the server ended."""
    cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "timeout graceful shutdown exceeded" not in record.getMessage()


class Guard:
    """ASGI: refuses what is too large or elsewhere before it is read, and tells browsers to load nothing from elsewhere."""

    def __init__(self, app: Any, most_bytes: int) -> None:
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _ELSEWHERE.search(scope["path"]):
            await _refuse(send, 403, "nothing is fetched from elsewhere")
            return
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.most_bytes:
            await _refuse(send, 413, "too large")
            return
        seen, answered = 0, False

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most_bytes:
                return {"type": "http.disconnect"}
            return message

        async def guarded(message: Any) -> None:
            nonlocal answered
            answered = True
            if message["type"] == "http.response.start":
                extra = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            await self.app(scope, counted, guarded)
        except Exception as error:  # of gradio, for a request that its page would not send; it has answered with 500
            print(f"mmdit: {scope['path']!r}: {type(error).__name__}: {first_line(error)}", file=sys.stderr, flush=True)
            if not answered:
                await _refuse(send, 500, "the server failed")


async def _refuse(send: Any, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables of the environment for a while; gradio is told by them, when it is imported and later."""
    values = {"GRADIO_ANALYTICS_ENABLED": "False", **values}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
