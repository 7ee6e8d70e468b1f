"""Whether the Hub answers, against servers of our own."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub.constants
import pytest

from mmdit.hub import out_of_reach


class Answer(BaseHTTPRequestHandler):
    """Knows one repository, and has no access to any other."""

    def do_GET(self) -> None:
        known = self.path.startswith("/api/models/owner/known")
        body = b'{"id": "owner/known"}' if known else b'{"error": "Repository not found"}'
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with HTTPServer(("127.0.0.1", 0), Answer) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{serving.server_port}")
        yield
        serving.shutdown()


@pytest.mark.parametrize("repository", ["owner/known", "owner/unknown", "no name at all!"])
def test_any_answer_counts(server: None, repository: str) -> None:
    assert not out_of_reach(repository)


def test_no_answer_is_found_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    start = time.monotonic()
    assert out_of_reach("owner/known")
    assert time.monotonic() - start < 5


def test_offline_mode_is_out_of_reach(server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert out_of_reach("owner/known")
