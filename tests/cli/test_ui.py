"""``mmdit ui`` refuses what it can't serve; tests/apps/ui has the app itself."""

from __future__ import annotations

import socket
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "--port is 70000: give 0 to 65535"),
        (["--host", "no such host"], "--host 'no such host' is not known"),
        (["--port", "0", "--model", "nowhere"], "nowhere"),
        (["--max_steps", "0"], "--max_steps is 0: give at least 1"),
    ],
)
def test_wrong_arguments(mmdit, arguments, message):
    result = mmdit("ui", *arguments)
    assert result.code == 2
    assert message in result.error


def test_a_port_in_use(mmdit):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = mmdit("ui", "--port", port)
    assert result.code == 2
    assert f"--port {port} can't be used" in result.error
    assert "--port 0" in result.error


def test_without_gradio_the_extra_is_named(mmdit, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else real(name, *rest)
    )
    monkeypatch.delitem(sys.modules, "gradio", raising=False)
    result = mmdit("ui")
    assert result.code == 2
    assert "pip install 'multimodal-dit[ui]'" in result.error


def test_examples_are_a_datasets_test_split(make_dataset):
    from mmdit.apps.ui.examples import fitting
    from mmdit.cli.ui import EXAMPLES, read_examples
    from mmdit.modalities import MODALITIES, build_codecs

    examples = read_examples(EXAMPLES)
    assert len(examples) == 10
    codecs = build_codecs(MODALITIES)
    assert [example.name for example in fitting(examples, codecs)] == [example.name for example in examples]
    only = {name: codecs[name] for name in ("rgb", "depth")}
    assert set(fitting(examples, only)[0].files) == {"rgb", "depth"}
    assert fitting(examples, {"depth": codecs["depth"]}) == []
