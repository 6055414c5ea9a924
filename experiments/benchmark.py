"""How fast does it train, beside PyTorch?

    python -m experiments.benchmark                                # ours alone
    python -m experiments.benchmark --peer torch                   # beside PyTorch: eager, eager bf16, torch.compile
    python -m experiments.benchmark --peer torch --task detect     # FCOS beside torchvision's; `segment`: DeepLabv3

Every contestant is a process of its own. They take turns in one run, a few steps each a round, so that all meet the
same machine; what is printed is the median of the rounds and the middle half of them. PyTorch runs with the number of
threads that is fastest for it. FLOPs of a step are three times those of the forward pass. `compilations` counts how
often our step was compiled; its batches hold from none to eight objects an image. The last line is one JSON object:
measurement -> numbers; ratios are the peer's time over ours. `--peer torch` needs the extra `peers`.
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
from cnn_jax.errors import unknown
from cnn_jax.reporting import print_table
from cnn_jax.reporting.trackers import plain
from cnn_jax.run import environment
from experiments.peers import require
from experiments.peers.contest import WORK, Contestant, take_turns, torch_rivals


@dataclass(frozen=True)
class Config:
    """Measure training speed."""

    task: Literal["classify", "detect", "segment"] = "classify"
    peer: Literal["torch"] | None = None
    models: tuple[str, ...] = ()  # of that task: simple_cnn, on a GPU also resnet18 and resnet50; fcos_small and …
    batch_size: int | None = None  # 128; for a detector on 64×64 images 16; for the large ones 2 on a CPU, 16 on a GPU
    rounds: int = 12
    steps: int = 10  # of each contestant, a round; of the large ones on a CPU 1
    epochs: int = 3  # of the whole program
    tiny: bool = False  # the same in less time, with numbers that say little


def main(config: Config) -> None:
    if config.peer:
        require("torch", "torchvision")
    runtime.configure()
    gpu = jax.default_backend() != "cpu"
    rounds, epochs = (2, 1) if config.tiny else (config.rounds, config.epochs)
    known = [name for name, work in WORK.items() if work.task == config.task]
    results = {}
    for model in config.models or (known if gpu or config.task != "classify" else ["simple_cnn"]):
        if model not in known:
            raise unknown(f"model to {config.task}", model, known)
        results |= step(model, config, rounds, gpu)
    if config.task == "classify":
        results |= program(config.peer, rounds=1 if config.tiny else 5, epochs=epochs)
    results["machine"] = {**environment(), "load": os.getloadavg()[0]}
    print(json.dumps(plain(results)))


def step(model: str, config: Config, rounds: int, gpu: bool) -> dict:
    """One training step of a model: float32 on a CPU, bfloat16 on a GPU."""
    work = WORK[model]
    small = model in ("simple_cnn", "fcos_small")
    batch, side = config.batch_size or work.batch[gpu], work.side[gpu]
    steps = config.steps * (50 if gpu and small else 1) if gpu or small else 1
    if config.tiny:
        steps, side = 1, min(side, 64)
    precision, size = "bfloat16" if gpu else "float32", 8192 if gpu else 2048
    common = {"model": model, "batch_size": batch, "side": side, "matmul_size": size}
    images = 60_000 if model == "simple_cnn" and not config.tiny else 4 * batch
    contestants = {"ours": Contestant("ours", precision=precision, images=images, **common)}
    rivals = torch_rivals(model, gpu) if config.peer else {}
    contestants |= {name: Contestant("torch_step", **common, **how) for name, how in rivals.items()}
    times, peak = take_turns(contestants, steps, rounds, matmul=("ours", "torch_eager") if not gpu else (*contestants,))
    peak = 2 * size**3 / peak
    result = compared(times)
    result |= {"batch_size": batch, "side": side, "images_per_second": 1000 * batch / result["ours_ms"]}
    result |= {"compilations": int(contestants["ours"].ask("compilations")), "gflops_peak": peak / 1e9}
    flops = 3 * contestants["ours"].about["flops"] * batch
    result["share_of_peak"] = 1000 * flops / result["ours_ms"] / peak
    if gpu and model == "simple_cnn":
        result["epoch_of_60000_ms"] = result["ours_ms"] * 60_000 / batch
    threads = {name: contestant.about.get("threads") for name, contestant in contestants.items()}
    for contestant in contestants.values():
        contestant.close()
    notes = {name: f"{count} threads" for name, count in threads.items() if count}
    show(f"{model}: one training step, batch {batch} of {side}×{side}, ours in {precision}", times, notes)
    print(
        f"{result['images_per_second']:,.0f} images/s; {result['share_of_peak']:.0%} of the "
        f"{peak / 1e9:,.0f} GFLOP/s that multiplying {size}×{size} matrices reaches here; "
        f"compilations of ours: {result['compilations']}\n"
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
