"""How fast does it train, beside PyTorch and beside plain Linen?

    python -m experiments.benchmark                                # ours alone
    python -m experiments.benchmark --peer torch                   # beside PyTorch: eager, eager bf16, torch.compile
    python -m experiments.benchmark --peer torch --task detect     # FCOS beside torchvision's; `segment`: DeepLabv3
    python -m experiments.benchmark --peer torch --task zoo        # classifiers: a forward pass and a training step
    python -m experiments.benchmark --peer torch --task explain    # maps of what counted, beside captum and grad-cam
    python -m experiments.benchmark --peer linen --task zoo --models mobilenet_v2    # what is our layers' own doing?

Every contestant is a process of its own. They take turns in one run, a few steps each a round behind as many that do
not count, so that all meet the same machine, and none in its caches what another left; what is printed is the median of
the rounds and the middle half of them. Small networks on a CPU are started three times, for a program is not as fast in
every process: PyTorch's step of SimpleCNN takes 18 to 31 ms, by how much memory it gives back to the system and takes
again. PyTorch runs with the number of threads that is fastest for it, its large networks channels-last. On a CPU ours
computes in float32, on a GPU in bfloat16. FLOPs of a step are three times those of the forward pass. `compilations`
counts how often our step was compiled; a detector's batches hold from none to eight objects an image. The last line is
one JSON object: measurement -> numbers; ratios are the peer's time over ours. `--peer torch` needs the extra `peers`;
`--peer linen` is the same network with one operation of XLA's a layer, which is what Linen's own layers are.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import jax

from cnn_jax import cli, runtime
from cnn_jax.errors import unknown
from cnn_jax.reporting.trackers import plain
from cnn_jax.run import environment
from experiments.peers import require
from experiments.peers.contest import Contestant, compared, milliseconds, show, take_turns
from experiments.peers.work import WORK, ZOO, torch_rivals


@dataclass(frozen=True)
class Config:
    """Measure training speed."""

    task: Literal["classify", "detect", "segment", "zoo", "explain"] = "classify"
    peer: Literal["torch", "linen"] | None = None
    models: tuple[str, ...] = ()  # of that task: simple_cnn; fcos_small and …; deeplabv3_resnet50; resnet18 and …
    batch_size: int | None = None  # 128 on a GPU and for simple_cnn, 8 for the zoo on a CPU; of the others 2 and 16
    rounds: int = 6  # of each process
    steps: int = 10  # of each contestant, a round; of the large ones on a CPU 3
    epochs: int = 3  # of the whole program
    tiny: bool = False  # the same in less time, with numbers that say little


def main(config: Config) -> None:
    cli.at_least(config, batch_size=1, rounds=1, steps=1, epochs=1)
    if config.peer == "torch":
        require("torch", "torchvision")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the contestants share the device's memory
    runtime.configure()
    gpu = jax.default_backend() != "cpu"
    rounds, epochs = (2, 1) if config.tiny else (config.rounds, config.epochs)
    known = ZOO if config.task == "zoo" else [name for name, work in WORK.items() if work.task == config.task]
    results = {}
    if config.task == "explain":
        results |= explanations(rounds, beside_torch=config.peer == "torch")
        known = []
    for model in config.models or (["simple_cnn"] if config.task == "classify" else known):
        if model not in known:
            raise unknown(f"model to {config.task}", model, known)
        results |= steps(model, config, rounds, gpu)
    if config.task == "classify":
        results |= program(rounds=1 if config.tiny else 5, epochs=epochs, beside_torch=config.peer == "torch")
    results["machine"] = {**environment(), "load": os.getloadavg()[0]}
    print(json.dumps(plain(results)))


def steps(model: str, config: Config, rounds: int, gpu: bool) -> dict:
    """One training step of a model, and for the zoo one forward pass."""
    work, precision = WORK[model], "bfloat16" if gpu else "float32"
    small = model in ("simple_cnn", "fcos_small")
    batch, side = config.batch_size or work.batch[gpu], work.side[gpu]
    each = config.steps * (50 if gpu and small else 1) if gpu or small else min(config.steps, 3)
    if config.tiny:
        each, side = 1, min(side, 64)
    size = 8192 if gpu else 2048
    common = {"model": model, "batch_size": batch, "side": side, "matmul_size": size}
    images = 60_000 if model == "simple_cnn" and not config.tiny else 4 * batch
    ours = {"precision": precision, "images": images}
    settings = {"ours": ("ours", ours)}
    if config.peer == "linen":
        settings["linen"] = ("ours", ours | {"plain": True})
    if config.peer == "torch":
        settings |= {name: ("torch_step", how) for name, how in torch_rivals(model, gpu).items()}
    commands = {"forward": ("forward pass", 1)} if config.task == "zoo" else {}
    commands["steps"] = ("training step", 3)  # passes through the network
    multiply = ("ours", "torch_eager") if not gpu else (*settings,)
    sittings = []
    for _ in range(3 if small and not gpu and not config.tiny else 1):
        # On a CPU one after the other, for they find out their threads; PyTorch's compiler takes a minute for each.
        with ThreadPoolExecutor(len(settings) if gpu else 1) as pool:
            contestants = pool.map(lambda of: Contestant(of[0], **common, **of[1]), settings.values())
            contestants = dict(zip(settings, contestants, strict=True))
        sittings.append(take_turns(contestants, (*commands,), each, rounds, matmul=multiply))
        compilations = int(contestants["ours"].ask("compilations"))
        for contestant in contestants.values():
            contestant.close()
    peak = 2 * size**3 / min(product for _, product in sittings)
    notes = {name: f"{count} threads" for name, x in contestants.items() if (count := x.about.get("threads"))}
    results = {}
    for command, (what, passes) in commands.items():
        taken = {name: [ms for times, _ in sittings for ms in times[command][name]] for name in settings}
        result = compared(taken) | {"batch_size": batch, "side": side}
        result |= {"images_per_second": 1000 * batch / result["ours_ms"], "gflops_peak": peak / 1e9}
        flops = passes * contestants["ours"].about["flops"] * batch
        result["share_of_peak"] = 1000 * flops / result["ours_ms"] / peak
        if command == "steps":
            result["compilations"] = compilations
        if gpu and model == "simple_cnn":
            result["epoch_of_60000_ms"] = result["ours_ms"] * 60_000 / batch
        show(f"{model}: one {what}, batch {batch} of {side}×{side}, ours in {precision}", taken, notes)
        print(
            f"{result['images_per_second']:,.0f} images/s; {result['share_of_peak']:.0%} of the "
            f"{peak / 1e9:,.0f} GFLOP/s that multiplying {size}×{size} matrices reaches here\n"
        )
        results[f"{model}_{command.removesuffix('s')}"] = result
    return results


def explanations(rounds: int, *, beside_torch: bool) -> dict:
    """Integrated gradients, occlusion and Grad-CAM of SimpleCNN for 256 images."""
    contestants = {"ours": Contestant("ours_explain")}
    contestants |= {f"captum_{n}": Contestant("torch_explain", threads=n) for n in (1, 2)} if beside_torch else {}
    taken, _ = take_turns(contestants, ("integrated", "occlusion", "grad_cam"), 1, rounds, matmul=())
    for method, times in taken.items():
        show(f"{method.replace('_', ' ')}: 256 images, SimpleCNN", times, {})
    for contestant in contestants.values():
        contestant.close()
    return {method: compared(times) for method, times in taken.items()}


def program(*, rounds: int, epochs: int, beside_torch: bool) -> dict:
    """Whole programs that train and test, from Python's start to its end; ours has compiled before."""
    ours = "from experiments.peers.ours import program; program"
    commands = {
        "ours": [sys.executable, "-c", f"{ours}({epochs})"],
        "torch_eager": [sys.executable, "-m", "experiments.peers.torch_program", str(epochs)],
    }
    commands = commands if beside_torch else {"ours": commands["ours"]}
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


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
