"""How fast does it train, beside PyTorch?

    python -m experiments.benchmark                 # ours alone
    python -m experiments.benchmark --peer torch    # beside PyTorch: eager, eager bf16, torch.compile

Every contestant is a process of its own. They take turns in one run, a few steps each a round, so that all meet the
same machine; what is printed is the median of the rounds and the middle half of them. PyTorch runs with the number of
threads that is fastest for it. FLOPs of a step are three times those of the forward pass. The last line is one JSON
object: measurement -> numbers; ratios are the peer's time over ours.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from cnn_jax import cli, runtime
from cnn_jax.reporting import print_table
from cnn_jax.reporting.trackers import plain
from cnn_jax.run import environment
from experiments.peers.contest import Contestant

TORCH = {
    "torch_eager": {"bfloat16": False, "compiled": False},
    "torch_eager_bf16": {"bfloat16": True, "compiled": False},
    "torch_compile": {"bfloat16": False, "compiled": True},
    "torch_compile_bf16": {"bfloat16": True, "compiled": True},
}


@dataclass(frozen=True)
class Config:
    """Measure training speed."""

    peer: Literal["torch"] | None = None
    models: tuple[Literal["simple_cnn", "resnet18", "resnet50"], ...] = ()  # simple_cnn; on a GPU all three
    batch_size: int = 128
    rounds: int = 12
    steps: int = 10  # of each contestant, a round
    epochs: int = 3  # of the whole program
    tiny: bool = False  # the same in less time, with numbers that say little


def main(config: Config) -> None:
    runtime.configure()
    gpu = jax.default_backend() != "cpu"
    rounds, epochs = (2, 1) if config.tiny else (config.rounds, config.epochs)
    results = {}
    for model in config.models or (("simple_cnn", "resnet18", "resnet50") if gpu else ("simple_cnn",)):
        steps = 1 if config.tiny else config.steps * (1 if model != "simple_cnn" or not gpu else 50)
        results |= step(model, config, rounds, steps, gpu)
    results |= program(config.peer, rounds=1 if config.tiny else 5, epochs=epochs)
    results["machine"] = {**environment(), "load": os.getloadavg()[0]}
    print(json.dumps(plain(results)))


def step(model: str, config: Config, rounds: int, steps: int, gpu: bool) -> dict:
    """One training step of a model: float32 on a CPU, bfloat16 on a GPU."""
    batch, precision, size = config.batch_size, "bfloat16" if gpu else "float32", 8192 if gpu else 2048
    common = {"model": model, "batch_size": batch, "matmul_size": size}
    images = 60_000 if model == "simple_cnn" and not config.tiny else 4 * batch
    contestants = {"ours": Contestant("ours", precision=precision, images=images, **common)}
    if config.peer:
        rivals = {name: how for name, how in TORCH.items() if gpu or name != "torch_compile_bf16"}
        contestants |= {name: Contestant("torch_program", **common, **how) for name, how in rivals.items()}
    times = {name: [] for name in contestants}
    peak = 0.0
    for _ in range(rounds):
        for name, contestant in contestants.items():
            times[name].append(1000 * contestant.seconds(f"steps {steps}") / steps)
            if gpu or name in ("ours", "torch_eager"):  # in the precision of our step
                peak = max(peak, 2 * size**3 / contestant.seconds("matmul"))
    flops = 3 * contestants["ours"].about["flops"] * batch
    threads = {name: contestant.about.get("threads") for name, contestant in contestants.items()}
    for contestant in contestants.values():
        contestant.close()
    result = compared(times)
    result |= {"batch_size": batch, "images_per_second": 1000 * batch / result["ours_ms"], "gflops_peak": peak / 1e9}
    result["share_of_peak"] = 1000 * flops / result["ours_ms"] / peak
    if gpu and model == "simple_cnn":
        result["epoch_of_60000_ms"] = result["ours_ms"] * 60_000 / batch
    notes = {name: f"{threads[name]} threads" if threads[name] else "" for name in times}
    show(f"{model}: one training step, batch {batch}, ours in {precision}", times, notes)
    print(
        f"{result['images_per_second']:,.0f} images/s; {result['share_of_peak']:.0%} of the "
        f"{peak / 1e9:,.0f} GFLOP/s that multiplying {size}×{size} matrices reaches here\n"
    )
    return {f"{model}_step": result}


def program(peer: str | None, *, rounds: int, epochs: int) -> dict:
    """Whole programs that train and test, from Python's start to its end; ours has compiled before."""
    ours = "from experiments.peers.ours import program; program"
    commands = {
        "ours": [sys.executable, "-c", f"{ours}({epochs})"],
        "torch_eager": [sys.executable, "-m", "experiments.peers.torch_program", str(epochs)],
    }
    commands = commands if peer else {"ours": commands["ours"]}
    first = {"ours": [sys.executable, "-c", f"{ours}(None, steps=1)"]}
    times, starts = ({name: [] for name in group} for group in (commands, first))
    for i in range(rounds + 1):  # the first round compiles
        for group, measured in ((commands, times), (first, starts)):
            for name, command in group.items():
                ms = milliseconds(command)
                if i:
                    measured[name].append(ms)
    notes = {"torch_eager": "with a DataLoader"}
    show(f"whole program: mnist_10k, {epochs} epochs, from start to finish, second start", times, notes)
    show("from start to the end of the first step, second start", starts, {})
    return {"program": compared(times), "first_step": compared(starts)}


def milliseconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - begin)


def compared(times: dict[str, list[float]]) -> dict:
    """Medians in ms, and the peers' over ours."""
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratios = {f"ratio_{name.removeprefix('torch_')}": ms / medians["ours"] for name, ms in medians.items()}
    ratios.pop("ratio_ours")
    return {f"{name}_ms": ms for name, ms in medians.items()} | ratios


def show(title: str, times: dict[str, list[float]], notes: dict[str, str]) -> None:
    rows = []
    for name, values in times.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        ratio = middle / np.median(times["ours"])
        rows.append([name, f"{middle:.1f}", f"{low:.1f} – {high:.1f}", f"{ratio:.2f}", notes.get(name, "")])
    print_table(title, ["", "median ms", "middle half", "× ours", ""], rows)


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
