"""A process that imports everything once and forks a child per request: real processes that start in no time.

Reads lines of JSON: {"start": arguments of mmdit or a path of a Python script with arguments, "env": {...}, "log": path} gives
the child's pid; {"wait": pid} gives its exit code, negative for a signal, or null while it runs.
"""

import json
import os
import runpy
import signal
import sys
import traceback

import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor
import torch.utils.tensorboard
from transformers import AutoImageProcessor, DepthAnythingForDepthEstimation, DPTImageProcessor  # noqa: F401

import mmdit.cli.train
import mmdit.sources.prompts.table
import mmdit.training.recipes  # noqa: F401
from mmdit.cli.main import main


def child(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    signal.signal(
        signal.SIGHUP, signal.SIG_DFL
    )  # as in a terminal: under nohup, or behind a shell's "&", they are ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if arguments[0].endswith(".py"):
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        return 0
    sys.argv = ["mmdit", *arguments]
    return main(arguments)


def start(arguments: list[str], env: dict[str, str], log: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(env)
        code = child(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


for line in sys.stdin:
    request = json.loads(line)
    wanted = request.get("start")
    print(json.dumps(start(wanted, request["env"], request["log"]) if wanted else wait(request["wait"])), flush=True)

os._exit(0)  # with all these libraries a tidy exit takes seconds
