"""Run by a test: imports everything once and forks real processes that label, one of them killed, two of them together.

Arguments: folder of images, output, folder of the depth labeller, a free port.
"""

import os
import signal
import sys
import time
from pathlib import Path

import diffusers.utils.logging  # noqa: F401
import torch
from transformers import AutoImageProcessor, DepthAnythingForDepthEstimation, DPTImageProcessor  # noqa: F401

from mmdit.cli.main import main

torch.set_num_threads(1)
IMAGES, OUTPUT, DEPTH, PORT = sys.argv[1:]
COMMAND = ["data", "label", "--images", IMAGES, "--output", OUTPUT, "--depth", DEPTH, "--normal", "none"]
COMMAND += ["--segmentation", "none", "--accelerator", "cpu", "--batch_size", "2"]


def start(arguments: list[str], **environment: object) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update({key: str(value) for key, value in environment.items()})
        code = main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def stop(pid: int, signal_number: int, seen: int) -> int:
    """Stop a process once it has written so many depth maps; return its exit code."""
    while len(list(Path(OUTPUT).glob("train/depth/*/*.png"))) < seen:
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise ChildProcessError("it ended by itself")
        time.sleep(0.002)
    os.kill(pid, signal_number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


for signal_number, seen in ((signal.SIGKILL, 1), (signal.SIGTERM, 7)):
    code = stop(start(COMMAND), signal_number, seen)
    there = [len(list(Path(OUTPUT).glob(f"train/{name}/*/*.png"))) for name in ("rgb", "depth")]
    print("STOPPED", code, *there, Path(OUTPUT, "train/manifest.jsonl").exists(), flush=True)

# As torchrun starts them.
world = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT, "GROUP_RANK": 0}
world |= {"TORCHELASTIC_RUN_ID": "test"}
pids = [start([*COMMAND, "--devices", "2"], RANK=rank, LOCAL_RANK=rank, **world) for rank in (0, 1)]
print("FINISHED", *(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids), flush=True)
