"""A contestant is a process that makes training steps when asked and sleeps otherwise.

So neither library's threads, allocator or environment meet the other's, and each runs as its users run it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable

# What a model is measured on: (side of the images, channels, classes).
SHAPES = {"simple_cnn": (28, 1, 10), "resnet18": (224, 3, 1000), "resnet50": (224, 3, 1000)}


def serve(run: Callable[[int], float], matmul: Callable[[], float], **about) -> None:
    """Answers, a line each: `steps N` with the seconds of N steps, `matmul` with those of one multiplication."""
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        print(run(int(arguments[0])) if command == "steps" else matmul(), flush=True)


class Contestant:
    """Starts `experiments.peers.MODULE.work(**settings)`; `about` is what it says of itself once it is warm."""

    def __init__(self, module: str, **settings):
        code = f"from experiments.peers.{module} import work; work(**{settings!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = json.loads(self._answer())

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contestant ended with {self._process.wait()}; what it said is above")
        return line

    def seconds(self, command: str) -> float:
        time.sleep(0.2)  # until the threads of the one before have gone to sleep
        print(command, file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        with self._process:  # closes its pipes, at which it ends, and waits for that
            pass
