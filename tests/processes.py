"""Real processes for tests, forked from one that has imported everything: to be killed, or to work together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass
class Child:
    """A real process: its pid, its place among those that train together, and what it prints."""

    pid: int
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Processes:
    """Starts children of ``forkserver.py``: ``mmdit`` commands or scripts, alone or as torchrun would start several."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        self._folder, self._count = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forkserver.py"))],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, arguments: Sequence[str], env: dict[str, str] | None = None) -> Child:
        """Start one process with the arguments of ``mmdit``, or a script's path and its arguments."""
        self._count += 1
        log = self._folder / f"{self._count:03d}.log"
        log.touch()
        pid = self._ask({"start": list(arguments), "env": env or {}, "log": str(log)})
        return Child(pid, log)

    def start_group(self, arguments: Sequence[str], size: int) -> list[Child]:
        """Start ``size`` processes that train together, with the environment that torchrun gives them."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "test",
        }
        ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size))
        return [self.start(arguments, {**common, **rank}) for rank in ranks]

    def poll(self, child: Child) -> int | None:
        """Return the exit code, negative for a signal; None while it runs. Once a code was given, ask no more."""
        code = self._ask({"wait": child.pid})
        return None if code is None else int(code)

    def wait(self, child: Child, timeout: float = 500) -> int:
        """Return the exit code; negative for a signal."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            code = self.poll(child)
            if code is not None:
                return code
            time.sleep(0.02)
        raise TimeoutError(child.text)

    def run(self, arguments: Sequence[str], size: int = 1) -> str:
        """Run to the end, expecting exit code 0; returns what the first process printed."""
        children = [self.start(arguments)] if size == 1 else self.start_group(arguments, size)
        codes = [self.wait(child) for child in children]
        assert codes == [0] * size, "\n".join(child.text for child in children)
        return children[0].text

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=120)
