"""The app over HTTP: many visitors at once, limits, errors of one line, and nothing from elsewhere."""

from __future__ import annotations

import http.server
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.apps.ui.local_blocks import addresses
from mmdit.apps.ui.server import POLICY, open_socket
from mmdit.errors import UserError

CATEGORIES = ["torus", "cone", "box", "sphere"]


@pytest.fixture(scope="session")
def client(url: str, tmp_path_factory: pytest.TempPathFactory):
    from gradio_client import Client

    downloads = str(tmp_path_factory.mktemp("downloads"))
    return Client(url, verbose=False, download_files=downloads, httpx_kwargs={"timeout": 120})


def generated(url: str, values: tuple) -> np.ndarray:
    """The RGB image among the files of a result, fetched: a client's own downloads take it longer than the server the result."""
    files = [each for value in values if isinstance(value, list) for each in value if "path" in each]
    path = next(file["path"] for file in files if Path(file["path"]).parts[-2:] == ("0", "rgb.png"))
    with urllib.request.urlopen(f"{url}/gradio_api/file={path}", timeout=60) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())))


def ask(client, category: str, seed: int) -> tuple:
    return client.predict(
        steps=2, guidance=1.5, new_seed=False, seed=seed, num_images=1, category=category, api_name="/generate"
    )


@pytest.mark.slow
def test_50_requests_of_8_visitors_at_once(url, tiny_pipe):
    """None is lost, and each visitor gets what that visitor asked for."""
    from gradio_client import Client

    jobs = [(CATEGORIES[i % 4], i) for i in range(50)]
    found: dict[tuple[str, int], np.ndarray] = {}
    errors: list[Exception] = []

    def visit(number: int) -> None:
        try:
            own = Client(url, verbose=False, download_files=False, httpx_kwargs={"timeout": 120})
            for job in jobs[number::8]:
                found[job] = generated(url, ask(own, *job))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(400)
    assert errors == []
    assert sorted(found) == sorted(jobs)
    for (category, seed), rgb in found.items():
        expected = tiny_pipe(class_labels=category, num_inference_steps=2, guidance_scale=1.5, seed=[seed])
        np.testing.assert_array_equal(rgb, np.asarray(expected.rgb[0]))


def test_previews_come_before_the_result(client):
    job = client.submit(steps=5, new_seed=False, category="torus", api_name="/generate")
    job.result(60)
    said = [values[0] for values in job.outputs()]
    assert said[0] == "Working …"
    assert said[1:-1] == [f"Step {step} of 5 …" for step in (2, 3, 4)]
    assert said[-1].startswith("Seed 0, 5 steps")


def test_conditions_by_file_and_a_shape(client, tmp_path):
    from gradio_client import handle_file

    path = tmp_path / "depth.npy"
    np.save(path, np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64))
    values = client.predict(
        steps=2,
        new_seed=False,
        given=["depth"],
        depth_values="near_white",
        depth_file=handle_file(path),
        api_name="/condition",
    )
    assert values[0].startswith("Seed 0, 2 steps")
    for fov, message in (
        ("200", "200: give the horizontal field of view in degrees"),
        ("wide", "'wide': give degrees"),
    ):
        with pytest.raises(Exception, match=f"the field of view is {message}"):
            client.predict(fov=fov, api_name="/shape")
    shape, camera, files = client.predict(api_name="/shape")
    assert camera.startswith("Camera: ")
    assert {"mesh.glb", "points.ply"} <= {Path(path).name for path in files}
    assert Path(shape).read_bytes()[:4] == b"glTF"


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("generate", {"steps": 31, "category": "torus"}, "31"),
        ("generate", {"category": "toros"}, "toros"),
        ("generate", {"prompt": "a red torus"}, "prompt"),
        ("generate", {"num_images": 9}, "9"),
        ("understand", {"image": None}, "there is no picture"),
        ("translate", {"image": None}, "there is no picture to translate"),
        ("edit", {"drawing": None}, "there is no picture to edit"),
        ("condition", {"given": []}, "nothing is given"),
    ],
)
def test_errors_are_one_line(client, task, values, message):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as caught:
        client.predict(**values, api_name=f"/{task}")
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("generate", {"steps": "x"}, "Steps is 'x': give a number"),
        ("generate", {"guidance": None}, "is None: give a number"),
        ("generate", {"seed": 1.5, "new_seed": False}, "Seed is 1.5: give a whole number"),
        ("generate", {"new_seed": "no"}, "is 'no': give true or false"),
        ("understand", {"match_input": "x"}, "is 'x': give true or false"),
        ("condition", {"given": None}, "Given is None: give a list of choices"),
        ("condition", {"given": ["deep"]}, "can't be read: .*deep"),
        ("condition", {"depth_values": "foo"}, "can't be read: .*foo"),
        ("edit", {"drawing": "x"}, "can't be read: "),
        ("edit", {"drawing": {"background": 3}}, "can't be read: "),
    ],
)
def test_values_that_the_page_would_not_send_are_one_line(client, task, values, message, capfd):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=message) as caught:
        client.predict(**values, api_name=f"/{task}")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_function_that_is_none_is_one_line_in_the_log(url, capfd):
    body = json.dumps({"data": [], "fn_index": 99999, "session_hash": "a"}).encode()
    ask = urllib.request.Request(f"{url}/gradio_api/queue/join", body, {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(ask, timeout=20)
    assert caught.value.code == 500
    assert b"\n" not in caught.value.read().strip()
    said, end = "", time.monotonic() + 20
    while not said.endswith("\n") and time.monotonic() < end:  # after the answer
        said += capfd.readouterr().err
        time.sleep(0.05)
    (line,) = said.splitlines()
    assert line == "mmdit: '/gradio_api/queue/join': KeyError: 99999"


def test_a_failure_of_ours_is_said_without_its_details(client, tiny_pipe, monkeypatch, capfd):
    def fail(*arguments, **named):
        raise RuntimeError("secret details")

    monkeypatch.setattr(type(tiny_pipe.vae), "decode", fail)
    with pytest.raises(Exception, match="the server failed with RuntimeError; its log says more"):
        ask(client, "torus", 0)
    assert "secret details" in capfd.readouterr().err


def test_uploads_have_a_limit(client, tmp_path):
    path = tmp_path / "large.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)).save(path)
    assert path.stat().st_size > 1_500_000
    from gradio_client import handle_file

    with pytest.raises(Exception, match=r"(?i)413|maximum|too large"):
        client.predict(image=handle_file(path), api_name="/understand")


def test_whatever_is_sent_has_a_limit(url):
    request = urllib.request.Request(
        f"{url}/gradio_api/queue/join", b" " * (3 * 2**20), {"content-type": "application/json"}
    )
    with pytest.raises(OSError, match=r"413|Broken pipe|reset"):  # refused by what it declares, before it is read
        urllib.request.urlopen(request, timeout=20)


def test_a_body_of_unknown_length_is_cut_off(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = "POST /gradio_api/queue/join HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"80000\r\n" + b" " * 0x80000 + b"\r\n"
        answer = b""
        try:
            for _ in range(12):
                connection.sendall(chunk)
            connection.sendall(b"0\r\n\r\n")
            answer = connection.recv(4096)
        except OSError:  # closed while we were sending
            pass
    assert not answer.startswith(b"HTTP/1.1 200")


def test_the_page_lets_a_browser_load_nothing_from_elsewhere(url):
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        text = answer.read().decode()
    assert "googleapis" not in text
    assert '"analytics_enabled":false' in text.replace(" ", "")


def test_files_of_this_machine_are_not_served(url):
    for path in ("/etc/passwd", str(Path(__file__).resolve()), "../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/gradio_api/file={path}", timeout=20)


@pytest.mark.parametrize(
    "path", ["file=http://example.com/a.png", "file=https://example.com/a.png", "proxy=https://example.com"]
)
def test_the_server_fetches_nothing_for_a_visitor(url, path):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{url}/gradio_api/{path}", timeout=20)


def test_a_file_by_address_is_refused_and_not_fetched(client, url, monkeypatch):
    import gradio.processing_utils

    asked: list[str] = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    # gradio itself refuses private addresses; other addresses it would fetch
    monkeypatch.setattr(gradio.processing_utils, "PUBLIC_HOSTNAME_WHITELIST", ["127.0.0.1"])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{elsewhere.server_port}/a<b>.png"
        file = {"path": address, "url": address, "meta": {"_type": "gradio.FileData"}}
        painted = {"background": file, "layers": [], "composite": None}
        for task, values in (
            ("understand", {"image": file}),
            ("translate", {"image": file}),
            ("edit", {"drawing": painted}),
            ("condition", {"given": ["depth"], "depth_file": file}),
            *((task, {"picture_3": painted}) for task in ("generate", "condition", "translate", "edit")),
        ):
            with pytest.raises(Exception, match="nothing is fetched from elsewhere: download it") as caught:
                client.predict(**values, api_name=f"/{task}")
            assert "a&lt;b&gt;.png" in str(caught.value)
        # what a program without gradio's client sees
        data = [0, 1, True, 0, 1, file, True]
        ask = urllib.request.Request(
            f"{url}/gradio_api/call/understand",
            json.dumps({"data": data}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(ask, timeout=20) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{url}/gradio_api/call/understand/{event}", timeout=20) as answer:
            assert "nothing is fetched from elsewhere" in answer.read().decode()
        elsewhere.shutdown()
    assert asked == []


def test_addresses_are_found_wherever_they_are():
    assert (
        list(addresses([1, "http://a", {"path": "/tmp/a.png", "url": "http://127.0.0.1/gradio_api/file=/tmp/a.png"}]))
        == []
    )
    assert list(addresses([{"background": {"path": "HTTPS://a"}, "layers": [{"path": " http://b"}]}])) == [
        "HTTPS://a",
        " http://b",
    ]


def test_only_this_machine_is_listened_to_by_default():
    import inspect

    from mmdit.cli.ui import ui

    assert inspect.signature(ui).parameters["host"].default == "127.0.0.1"
    with open_socket("127.0.0.1", 0) as opened:
        assert opened.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UserError, match=r"--port \d+ can't be used"):
            open_socket("127.0.0.1", opened.getsockname()[1])
