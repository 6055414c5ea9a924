"""A contestant is a process that makes training steps when asked and sleeps otherwise.

So neither library's threads, allocator or environment meet the other's, and each runs as its users run it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cnn_jax.reporting import print_table


class Work(NamedTuple):
    """What a model is measured on: images of `side` pixels, on a CPU and on a GPU, and so many of them in a batch."""

    task: str
    channels: int
    classes: int
    side: tuple[int, int]
    batch: tuple[int, int]


WORK = {
    "simple_cnn": Work("classify", 1, 10, (28, 28), (128, 128)),
    "resnet18": Work("classify", 3, 1000, (224, 224), (8, 128)),
    "resnet50": Work("classify", 3, 1000, (224, 224), (8, 128)),
    "mobilenet_v2": Work("classify", 3, 1000, (224, 224), (8, 128)),
    "convnext_tiny": Work("classify", 3, 1000, (224, 224), (8, 128)),
    "fcos_small": Work("detect", 3, 10, (64, 64), (16, 16)),
    "fcos_resnet50_fpn": Work("detect", 3, 90, (256, 512), (2, 16)),
    "deeplabv3_resnet50": Work("segment", 3, 21, (256, 512), (2, 16)),
}
ZOO = ("resnet18", "resnet50", "mobilenet_v2", "convnext_tiny")  # whose forward pass is measured as well
MOST_OBJECTS = 8
# What is explained of SimpleCNN: so many images, steps of integrated gradients, and squares that cover the image.
EXPLAINED = {"images": 256, "steps": 50, "window": 7, "stride": 3}
TORCH = {
    "torch_eager": {"bfloat16": False, "compiled": False},
    "torch_eager_bf16": {"bfloat16": True, "compiled": False},
    "torch_compile": {"bfloat16": False, "compiled": True},
    "torch_compile_bf16": {"bfloat16": True, "compiled": True},
}


def torch_rivals(model: str, gpu: bool) -> dict[str, dict]:
    """The ways to run PyTorch that are worth comparing with, for `torch_step.work`."""
    if model == "fcos_small":  # which torchvision has not
        return {}
    # torchvision's detectors come apart under `torch.compile`, and on a CPU it takes three minutes for DeepLabv3: after
    # them steps of either are no faster.
    compiles = WORK[model].task == "classify" or (gpu and WORK[model].task == "segment")
    rivals = {name: how for name, how in TORCH.items() if compiles or not how["compiled"]}
    if gpu and model != "simple_cnn":  # large ones take half the time so
        return {name: how for name, how in rivals.items() if how["bfloat16"]}
    return {name: how for name, how in rivals.items() if gpu or name != "torch_compile_bf16"}


def random_data(model: str, images: int, side: int) -> dict[str, np.ndarray]:
    """A random batch for a model of `WORK`."""
    work = WORK[model]
    return random_batch(work.task, images, side, channels=work.channels, classes=work.classes)


def random_batch(task: str, images: int, side: int, *, channels: int, classes: int) -> dict[str, np.ndarray]:
    """Images and what is true of them, in the form of our batches; for a detector with none to eight objects each."""
    rng = np.random.default_rng(0)
    data = {"image": rng.integers(0, 256, (images, side, side, channels), np.uint8)}
    if task == "segment":
        return data | {"map": rng.integers(0, classes, (images, side, side), np.uint8)}
    if task == "classify":
        return data | {"label": rng.integers(0, classes, images, np.int32)}
    corner = rng.uniform(0, side / 2, (images, MOST_OBJECTS, 2))
    size = rng.uniform(side / 16, side / 2, corner.shape)
    return data | {
        "boxes": np.concatenate([corner, corner + size], -1).astype(np.float32),
        "label": rng.integers(0, classes, corner.shape[:2], np.int32),
        "objects": np.arange(MOST_OBJECTS) < ((np.arange(images) + 4) % (MOST_OBJECTS + 1))[:, None],
    }


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
