"""Real processes, killed while they train and while they save: resumed, they end as if nothing had happened.

By hand, twenty kills:    python tests/experiments/test_kill.py 20 [SEED]
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import optax
import pytest

from cnn_jax import models, training

# A network so small, and epochs so short, that most of the time goes into saving: a kill often falls into a save.
SCRIPT = '''
"""A run that saves every third step."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnn_jax import cli, models, runtime, tasks, training
from cnn_jax.run import Run


@dataclass(frozen=True)
class Config:
    out: Path
    epochs: int


def main(config):
    runtime.configure()
    run = Run(config.out, {"epochs": config.epochs}, resume=True)
    noise = np.random.default_rng(0)
    train = {"image": noise.integers(0, 256, (24, 8, 8, 1), np.uint8), "label": np.arange(24, dtype=np.int32) % 3}
    training.fit(
        models.create("simple_cnn", num_classes=3),
        tasks.classify(3),
        train,
        test=train,
        batch_size=8,
        epochs=config.epochs,
        checkpoints=training.Checkpoints(run.path / "checkpoints", best="accuracy"),
        log=lambda kind, step, values: print(kind, step, values.get("damaged", ""), flush=True),
    )
    print("finished", flush=True)


cli.main(main, Config, __doc__)
'''
STEPS_PER_EPOCH = 3


class Ended(NamedTuple):
    code: int
    step: int  # that it last spoke of
    finished: bool
    out: str
    err: str


def run(folder: Path, *, epochs: int, **kill) -> Ended:
    """Begins the run in `folder` or goes on with it, in a process of its own; `kill` is `watch`'s."""
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), "--out", str(folder), "--epochs", str(epochs)]
    return watch(command, **kill)


def watch(
    command: list[str],
    *,
    send: int | None = None,
    when: str = "",
    count: int = 1,
    after: float = 0.0,
    saves: Path | None = None,
) -> Ended:
    """Runs a command to its end.

    A signal is sent `after` seconds after the `count`-th line of output that begins with `when`, or after the start;
    with `saves`, a folder of checkpoints, the process is killed in the midst of the next save from then on.
    """
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    with (
        tempfile.TemporaryFile("w+") as err,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True, env=environment) as process,
    ):
        kill = partial(kill_in_a_save, process, saves) if saves else partial(process.send_signal, send)
        timer = threading.Timer(after, kill)
        if send and not when:
            timer.start()
        lines = []
        for line in process.stdout:
            lines.append(line)
            if send and when and line.startswith(when):
                count -= 1
                if count == 0:
                    timer.start()
        code = process.wait()
        timer.cancel()
        err.seek(0)
        steps = re.findall(r"^(?:train|test|restored) (\d+)", "".join(lines), re.MULTILINE)
        return Ended(code, int(steps[-1]) if steps else 0, "finished\n" in lines, "".join(lines), err.read())


def kill_in_a_save(process: subprocess.Popen, saves: Path) -> None:
    """Kills a process that is held still for it, so that what it was writing is half written for certain."""
    while process.poll() is None:
        if any(saves.glob("*tmp*")):
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if any(saves.glob("*tmp*")):
                process.kill()
                return
            process.send_signal(signal.SIGCONT)
        time.sleep(0.001)


def state(folder: Path, template=None) -> tuple[int, dict]:
    """(step, {name: array}) of the newest checkpoint; of the script above without a template."""
    if template is None:
        model = models.create("simple_cnn", num_classes=3)
        template = training.create_state(jax.random.key(0), model, optax.adam(1e-3), (8, 8, 1))
    checkpoints = training.Checkpoints(folder / "checkpoints")
    restored = checkpoints.restore(template)
    checkpoints.close()
    assert restored.damaged == []
    return restored.step, {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(restored.state)}


def differing(left: Path, right: Path, template=None) -> list[str]:
    """The names of the arrays that are not the same bit for bit, of the newest checkpoints of two runs."""
    (left_step, a), (right_step, b) = state(left, template), state(right, template)
    assert left_step == right_step
    assert a.keys() == b.keys()
    return [name for name in a if a[name].tobytes() != b[name].tobytes()]


def kill_and_resume(kills: int, *, seed: int, folder: Path, epochs: int) -> Path:
    """Kills a run `kills` times and lets it end; returns its folder. Prints what became of each.

    The first kill falls into a save, the others come at random moments: one in four between the start of the process
    and its first step, the others in training.
    """
    moments = random.Random(seed)
    for number in range(1, kills + 1):
        saves = None
        if number == 1:
            when, count, after, saves = "train", 2, 0.0, folder / "checkpoints"
        elif moments.random() < 0.25:
            when, count, after = "", 0, moments.uniform(0, 1)
        else:
            when, count, after = "train", moments.randint(1, 6), moments.uniform(0, 0.1)
        ended = run(folder, epochs=epochs, send=signal.SIGKILL, when=when, count=count, after=after, saves=saves)
        moment = f"{after:.3f} s after {f'epoch {count} since ' if when else ''}its start"
        # At a start there may be what an earlier kill left: it is cleaned away when training begins.
        saving = [path.name.split(".")[0] for path in folder.glob("checkpoints/*tmp*") if when]
        where = f"at step {ended.step}, in the save of {saving[0]}" if saving else f"at step {ended.step}"
        print(f"kill {number}: {moment}, {where}", flush=True)
        assert ended.code == -signal.SIGKILL, ended.out + ended.err
        assert not ended.finished
        assert saving or not saves
    ended = run(folder, epochs=epochs)
    assert (ended.code, ended.finished, ended.err) == (0, True, "")
    return folder


EPOCHS = 30


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    ended = run(folder, epochs=EPOCHS)
    assert (ended.code, ended.finished, ended.err) == (0, True, "")
    assert state(folder)[0] == EPOCHS * STEPS_PER_EPOCH
    return folder


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(uninterrupted, tmp_path):
    assert differing(kill_and_resume(3, seed=1, folder=tmp_path / "run", epochs=EPOCHS), uninterrupted) == []


@pytest.mark.slow
def test_signals_save_say_so_and_lose_nothing(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    last = 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        ended = run(folder, epochs=EPOCHS, send=number, when="test")
        assert ended.code == code
        sentence = rf"stopped by {number.name} after step (\d+): saved; go on with --resume\n"
        step = int(re.fullmatch(sentence, ended.err).group(1))
        assert state(folder)[0] == step > last
        last = step
    ended = run(folder, epochs=EPOCHS)
    assert (ended.code, ended.finished, ended.err) == (0, True, "")
    assert ended.out.startswith(f"restored {last} []\n")
    assert differing(folder, uninterrupted) == []


@pytest.mark.slow
def test_the_command_itself(tmp_path):
    """`classify`, killed after its first epoch, and never killed: the same checkpoint, the same summary."""

    def command(name):
        folder = tmp_path / name
        return [sys.executable, "-m", "experiments.classify", "--tiny", "--resume", "--out", str(folder)]

    whole = watch(command("whole"))
    assert (whole.code, whole.err) == (0, "")
    killed = watch(command("killed"), send=signal.SIGKILL, when="epoch 1")
    assert killed.code == -signal.SIGKILL
    assert "report:" not in killed.out
    resumed = watch(command("killed"))
    assert (resumed.code, resumed.err) == (0, "")
    tx = training.make_optimiser("adam", lambda step: 1e-3)
    template = training.create_state(jax.random.key(0), models.create("simple_cnn"), tx, (28, 28, 1), ema=True)
    assert differing(tmp_path / "whole", tmp_path / "killed", template) == []
    read = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed")]
    measured = [{name: value for name, value in summary.items() if name.startswith("test_")} for summary in read]
    assert measured[0] == measured[1]


if __name__ == "__main__":
    kills, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as home:
        whole, killed = Path(home) / "whole" / "run", Path(home) / "killed" / "run"
        whole.parent.mkdir()
        killed.parent.mkdir()
        length = 20 + 6 * kills
        ended = run(whole, epochs=length)
        assert ended.finished, ended.err
        print(f"uninterrupted: {ended.step} steps, a save every {STEPS_PER_EPOCH}")
        kill_and_resume(kills, seed=seed, folder=killed, epochs=length)
        print("differing arrays:", differing(killed, whole) or f"none of {len(state(whole)[1])}")
