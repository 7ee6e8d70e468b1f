"""``mmdit ui``: the browser app."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mmdit.bounds import PositiveInt
from mmdit.cli.common.model import BUNDLED_MODEL, DtypeName, note
from mmdit.errors import UserError

if TYPE_CHECKING:
    from mmdit.apps.ui.examples import Example

EXAMPLES = Path(__file__).resolve().parents[1] / "assets" / "scenes64_examples"
_LOCAL = ("127.", "::1", "localhost")
_MAX_PORT = 65535
_MAX_EXAMPLES = 20


def ui(
    model: str = BUNDLED_MODEL,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "auto",
    dtype: DtypeName = "auto",
    scheduler: str | None = None,
    examples: Path | None = EXAMPLES,
    max_upload_megabytes: PositiveInt = 20,
    max_side: PositiveInt = 2048,
    max_steps: PositiveInt = 100,
    max_images: PositiveInt = 4,
    max_waiting: PositiveInt = 64,
) -> None:
    """Serve a page that generates, understands, conditions, translates and edits in a browser.

    Prints its address, and serves until Ctrl-C. Only this machine can open it unless --host says otherwise; then anybody who
    reaches this machine can, within the limits below. Nothing is sent to or fetched from elsewhere. Requests wait in a
    queue; results are kept for an hour, and gone when the server ends. Needs pip install 'multimodal-dit[ui]'.

    Args:
        model: A bundled model's name, a pipeline folder, or a Hub id.
        host: Address to listen on; 0.0.0.0 = all of this machine.
        port: Port to listen on; 0 = any free one.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
        scheduler: euler, heun, unipc, dpmsolver++, euler_maruyama, or flow_map for a model that learned its steps; by default
            the model's own.
        examples: Dataset folder with a split named test, whose samples are offered where they fit the model; null = none.
        max_upload_megabytes: Size of an upload.
        max_side: Longer side in pixels of images; larger ones are shrunk.
        max_steps: Denoising steps.
        max_images: Samples of one request.
        max_waiting: Requests in the queue; more are refused.
    """
    for package in ("gradio", "trimesh"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"the browser app needs {package}, which is not installed: pip install 'multimodal-dit[ui]'"
            )
    if not 0 <= port <= _MAX_PORT:
        raise UserError(f"--port is {port}: give 0 to {_MAX_PORT}, 0 = any free one")
    from mmdit.apps.ui.server import address_of, app_of, make_server, open_socket

    with open_socket(host, port) as opened:
        from mmdit.apps.ui.limits import Limits
        from mmdit.cli.common.model import load_pipeline

        pipe = load_pipeline(model, device, dtype, scheduler)
        logging.getLogger("mmdit").setLevel(logging.ERROR)  # what concerns a visitor is said in the page
        pipe.set_progress_bar_config(disable=True)
        limits = Limits(
            upload_megabytes=max_upload_megabytes,
            side=max_side,
            steps=max_steps,
            images=max_images,
            waiting=max_waiting,
        )
        offered = [] if examples is None else read_examples(examples)
        if not host.startswith(_LOCAL):
            note(f"--host {host}: anybody who reaches this machine can use the page")
        address = address_of(opened)
        with app_of(pipe, model=model, limits=limits, examples=offered) as app:
            server = make_server(app, lambda: print(f"mmdit ui: {address} (Ctrl-C ends it)", flush=True))
            server.run(sockets=[opened])


def read_examples(data: Path) -> list[Example]:
    """The samples of a dataset's test split. Raises UserError for a folder that is no dataset."""
    from mmdit.apps.ui.examples import Example
    from mmdit.data.manifest import read_dataset_info, read_manifest

    samples = read_manifest(read_dataset_info(data), "test")
    return [
        Example(sample.id, {name: path for name, path in sample.files.items() if path is not None})
        for sample in samples
    ][:_MAX_EXAMPLES]
