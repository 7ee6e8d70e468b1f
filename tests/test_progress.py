import io
import re
import time
from types import SimpleNamespace

import pytest

import mmdit.progress as progress_module
from mmdit.progress import Progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_whole_lines_ever_more_rarely(monkeypatch):
    clock = iter(range(10**6))
    # A clock of the module's own, a second per step: the threads of others, such as an event loop, go by time.monotonic.
    own = SimpleNamespace(monotonic=lambda: next(clock) / 2, strftime=time.strftime)
    monkeypatch.setattr(progress_module, "time", own)
    log = io.StringIO()
    with Progress(3000, "encode", "sample", file=log) as progress:
        for _ in range(3000):
            progress.update()
    text = log.getvalue()
    assert "\r" not in text
    lines = text.splitlines()
    assert 5 < len(lines) < 20
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d encode: 0% \d+/3000 samples, [\d.]+ samples/s, 0:\d\d passed, \d+:\d\d left", lines[0]
    )
    assert re.match(r"\S+ encode: 100% 3000/3000 samples", lines[-1])


def test_a_short_run_is_one_line_even_if_it_fails():
    log = io.StringIO()
    progress = Progress(5, "label", "image", file=log)

    def work():
        yield from range(2)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        list(progress.track(work()))
    progress.close()
    (line,) = log.getvalue().splitlines()
    assert " label: 40% 2/5 images" in line
    log = io.StringIO()
    assert list(Progress(None, "count", file=log).track("abc")) == ["a", "b", "c"]
    assert " count: 3 steps" in log.getvalue()


def test_a_terminal_gets_a_bar_and_silence_is_silent():
    terminal, log = _Terminal(), io.StringIO()
    with Progress(2, "encode", "sample", file=terminal) as progress:
        progress.update(2)
    assert "100%" in terminal.getvalue()
    with Progress(2, "encode", enabled=False, file=log) as progress:
        progress.update(2)
    assert log.getvalue() == ""
