"""The server ends soon whatever is open: pages that say that they are open, a call that runs, one that waits."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path

import pytest

from mmdit.apps.ui.limits import Limits
from mmdit.apps.ui.server import app_of, make_server

WORDS = {"category": "torus", "prompt": "", "negative_prompt": "", "fusing_scale": 0.5}
LONG = {"steps": 5000, "guidance": 1, "new_seed": False, "seed": 0, "num_images": 1, **WORDS}


def begin(url: str) -> str:
    """Ask for a long call; returns where its events are."""
    address = f"{url}/gradio_api/call/v2/generate"
    ask = urllib.request.Request(address, json.dumps(LONG).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(ask, timeout=20) as answer:
        return f"{url}/gradio_api/call/generate/{json.load(answer)['event_id']}"


def open_page(url: str, name: str):
    beat = urllib.request.urlopen(f"{url}/gradio_api/heartbeat/{name}", timeout=60)
    assert beat.readline() == b"data: ALIVE\n"
    return beat


def test_open_pages_and_calls_do_not_hold_the_server(serve, tiny_pipe):
    with serve(tiny_pipe, model="tiny", limits=Limits(steps=5000), interval=0.0) as url:
        beats = [open_page(url, f"page{number}") for number in range(3)]
        running = urllib.request.urlopen(begin(url), timeout=60)
        waiting = urllib.request.urlopen(begin(url), timeout=60)
        assert running.readline()  # it has begun
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    assert [beat.read() for beat in beats] == [b"\n"] * 3  # ended, not cut off
    for events in (running, waiting):
        with events:
            assert b"event: complete" not in events.read()


def test_a_second_interruption_ends_the_process_at_once(tiny_pipe, monkeypatch: pytest.MonkeyPatch):
    class Ended(BaseException):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    with app_of(tiny_pipe, model="tiny") as app:
        server = make_server(app)
        server.handle_exit(signal.SIGINT, None)
        assert server.should_exit
        assert Path(app.state.folder).is_dir()
        with pytest.raises(Ended, match="130"):
            server.handle_exit(signal.SIGINT, None)
        assert not Path(app.state.folder).exists()
