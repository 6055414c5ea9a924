"""A contestant is a process that makes training steps when asked and sleeps otherwise.

So neither library's threads, allocator or environment meet the other's, and each runs as its users run it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from cnn_jax.reporting import print_table


def serve(about: dict, **commands: Callable[[int], float]) -> None:
    """Answers lines such as `steps 10` with what `commands["steps"](10)` returns, after a first line `about` itself."""
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        print(commands[command](*map(int, arguments)), flush=True)


def timed(method: Callable) -> Callable[[int], float]:
    """A command for `serve`: the seconds of so many calls."""

    def seconds(times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            method()
        return time.perf_counter() - begin

    return seconds


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

    def ask(self, command: str) -> float:
        time.sleep(0.2)  # until the threads of the one before have gone to sleep
        print(command, file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        with self._process:  # closes its pipes, at which it ends, and waits for that
            pass


def take_turns(
    contestants: dict[str, Contestant], commands: tuple[str, ...], steps: int, rounds: int, *, matmul: tuple[str, ...]
) -> tuple[dict[str, dict[str, list[float]]], float]:
    """Milliseconds, {command: {name: one a round}}, and the least seconds in which those in `matmul` multiplied.

    A turn begins with as much that is not timed: so caches hold what is the contestant's own, as in a long run.
    """
    times, multiplied = {command: {name: [] for name in contestants} for command in commands}, []
    for _ in range(rounds):
        for name, contestant in contestants.items():
            for command in commands:
                contestant.ask(f"{command} {steps}")
                times[command][name].append(1000 * contestant.ask(f"{command} {steps}") / steps)
            multiplied += [contestant.ask("matmul")] if name in matmul else []
    return times, min(multiplied, default=float("nan"))


def compared(times: dict[str, list[float]]) -> dict:
    """Medians in ms, and the peers' over ours."""
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratios = {f"ratio_{name.removeprefix('torch_')}": ms / medians["ours"] for name, ms in medians.items()}
    ratios.pop("ratio_ours")
    return {f"{name}_ms": ms for name, ms in medians.items()} | ratios


def milliseconds(command: list[str]) -> float:
    """How long a command takes from its start to its end."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - begin)


def show(title: str, times: dict[str, list[float]], notes: dict[str, str]) -> None:
    """Prints medians of the rounds in ms, their middle half, and how many times ours they are."""
    rows = []
    for name, values in times.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        ratio = middle / np.median(times["ours"])
        rows.append([name, f"{middle:.1f}", f"{low:.1f} – {high:.1f}", f"{ratio:.2f}", notes.get(name, "")])
    print_table(title, ["", "median ms", "middle half", "× ours", ""], rows)
