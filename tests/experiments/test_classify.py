"""The command `python -m experiments.classify`, whole but in this process, on 8 devices."""

import contextlib
import json
import math
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import data, models, training
from cnn_jax.models.simple_cnn import SimpleCNN
from cnn_jax.reporting import read_metrics
from cnn_jax.run import Run
from experiments import classify

run, fails = partial(commands.run, classify), partial(commands.fails, classify)


def tiny(*flags) -> str:
    """What a tiny run that succeeds prints."""
    return commands.succeeds(classify, "--tiny", *flags)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """(folder, printed) of one tiny run with the defaults, for all tests to read."""
    folder = tmp_path_factory.mktemp("home")
    with contextlib.chdir(folder):
        printed = tiny()
    return folder / "runs" / "mnist_10k", printed


@pytest.fixture
def copy(first, tmp_path):
    """A copy of that run, to damage or resume."""
    return Path(shutil.copytree(first[0], tmp_path / "run"))


def arrays(folder: Path) -> dict:
    """The newest checkpoint of a run of SimpleCNN with Adam as the command makes them, as {name: array}."""
    tx = training.make_optimiser("adam", training.make_schedule("constant", 1e-3, total_steps=16))
    template = training.create_state(jax.random.key(0), models.create("simple_cnn"), tx, (28, 28, 1), ema=True)
    checkpoints = training.Checkpoints(folder / "checkpoints")
    state = checkpoints.restore(template).state
    checkpoints.close()
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(state)} | {"state": state}


def assert_identical(a: Path, b: Path) -> None:
    left, right = arrays(a), arrays(b)
    assert left.keys() == right.keys()
    left.pop("state"), right.pop("state")
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


def bytes_of(folder: Path) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# What a run leaves


def test_the_folder_of_a_run(first):
    folder, printed = first
    names = {path.name for path in folder.iterdir()}
    assert names == {
        ".lock", "config.json", "model.json", "metrics.jsonl", "summary.json", "report.html", "figures", "checkpoints",
    }  # fmt: skip
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert settings["model"] == "simple_cnn"
    assert settings["tiny"] is True
    assert not {"out", "resume", "platform", "look"} & set(settings)
    assert json.loads((folder / "model.json").read_text())["form"] == "mnist_10k"
    assert printed.rstrip().endswith("report: runs/mnist_10k/report.html")
    for said in ("421,642 parameters", "conv1", "images/s", "test accuracy", "macro", "weighted"):
        assert said in printed


def test_summary(first):
    summary = json.loads((first[0] / "summary.json").read_text())
    named = (
        "test_accuracy test_precision_macro test_recall_macro test_f1_macro test_loss train_seconds images_per_second"
    )
    for name in named.split():
        assert isinstance(summary[name], float), name
        assert math.isfinite(summary[name]), name
    assert summary["parameters"] == 421_642
    assert all(isinstance(value, int | float) for value in summary.values())  # flat: name -> number
    assert summary["test_count"] == 128


def test_the_summary_is_that_of_the_last_checkpoint(first):
    """Recomputed from the restored parameters with loops over examples and classes."""
    digits = data.load("mnist_10k")
    images, labels = digits.test["image"][:128], digits.test["label"][:128]
    variables = arrays(first[0])["state"].variables  # the moving average
    inputs = ((images / np.float64(255) - 0.5) / 0.5).astype(np.float32)
    logits = np.asarray(models.create("simple_cnn").apply(variables, inputs), np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    answers = logits.argmax(axis=1)
    precision, recall, f1 = [], [], []
    for c in range(10):
        right = sum(1 for answer, label in zip(answers, labels, strict=True) if answer == label == c)
        answered, there = int((answers == c).sum()), int((labels == c).sum())
        precision.append(right / answered if answered else 0.0)
        recall.append(right / there if there else 0.0)
        f1.append(2 * right / (answered + there) if answered + there else 0.0)
    expected = {
        "test_loss": -np.mean([log_p[i, label] for i, label in enumerate(labels)]),
        "test_accuracy": np.mean(answers == labels),
        "test_precision_macro": np.mean(precision),
        "test_recall_macro": np.mean(recall),
        "test_f1_macro": np.mean(f1),
    }
    summary = json.loads((first[0] / "summary.json").read_text())
    assert {name: summary[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert summary["test_accuracy"] > 0.3  # it learned something: chance is 0.1


def test_metrics(first):
    records = read_metrics(first[0] / "metrics.jsonl")
    assert [(record["split"], record["step"], record["epoch"]) for record in records] == [
        ("train", 8, 1.0), ("test", 8, 1.0), ("train", 16, 2.0), ("test", 16, 2.0),
    ]  # fmt: skip
    assert set(records[0]["grad_norm"]) == {"conv1", "conv2", "fc1", "logits"}
    summary = json.loads((first[0] / "summary.json").read_text())
    assert records[-1]["accuracy"] == summary["test_accuracy"]


def test_the_report_needs_nothing_else(first):
    html = (first[0] / "report.html").read_text()
    for reference in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", html):
        assert reference.startswith(("data:", "#")), reference[:80]
    assert not re.search(r"<(script[^>]+src|iframe|object)\b|@import", html)
    figures = {path.stem for path in (first[0] / "figures").iterdir()}
    assert {"curves", "confusion", "filters", "mistakes", "feature_maps_0", "gradient_norms", "samples"} <= figures
    assert html.count("data:image/png;base64,") >= len(figures)
    assert "python -m experiments.classify --tiny" in re.sub("<[^>]+>", "", html)


# The same numbers, however they come about


@pytest.mark.usefixtures("undrawn")
def test_pmap_gives_the_numbers_of_jit(tmp_path, monkeypatch):
    # Without dropout: under pmap each device draws a mask of its own.
    monkeypatch.setattr(models, "create", lambda name, **options: SimpleCNN(dropout=0.0, **options))
    for parallel in ("jit", "pmap"):
        tiny("--parallel", parallel, "--out", tmp_path / parallel)
    jit, pmap = (json.loads((tmp_path / p / "summary.json").read_text()) for p in ("jit", "pmap"))
    measured = [name for name in jit if name.startswith("test_")]
    assert {name: pmap[name] for name in measured} == pytest.approx({n: jit[n] for n in measured}, abs=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_a_seed_decides_everything(first, tmp_path):
    tiny("--out", tmp_path / "again")
    assert_identical(tmp_path / "again", first[0])
    records = [read_metrics(folder / "metrics.jsonl") for folder in (first[0], tmp_path / "again")]
    for a, b in zip(*records, strict=True):
        a.pop("images_per_second", None), b.pop("images_per_second", None)
        assert a == b


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_every_augmentation_and_the_better_recipe(tmp_path):
    tiny(
        "--augment", "shift", "flip", "crop", "resized_crop", "color", "erase", "rand", "mixup", "cutmix",
        "--schedule", "cosine", "--warmup-epochs", 0.5, "--ema", 0.9, "--label-smoothing", 0.1, "--clip-norm", 1,
        "--weight-decay", 0.01, "--accumulate", 2, "--precision", "bfloat16", "--tensorboard",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert math.isfinite(json.loads((tmp_path / "run" / "summary.json").read_text())["test_loss"])
    assert list((tmp_path / "run" / "tensorboard").iterdir())


# Going on


def test_a_finished_run_resumed_changes_no_number(first, copy):
    printed = tiny("--resume", "--out", copy)
    assert "resumed after step 16" in printed
    for name in ("summary.json", "metrics.jsonl", "config.json", "model.json"):
        assert (copy / name).read_text() == (first[0] / name).read_text(), name


@pytest.mark.usefixtures("undrawn")
def test_resume_without_a_folder_takes_up_the_latest(first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mnist_10k", "mnist_10k-2"):
        shutil.copytree(first[0], tmp_path / "runs" / name)
    assert tiny("--resume").rstrip().endswith("report: runs/mnist_10k-2/report.html")
    assert not (tmp_path / "runs" / "mnist_10k-3").exists()


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def biggest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("damage", [flip_a_byte, truncate])
def test_a_damaged_checkpoint_is_passed_over_and_said_so(first, copy, damage):
    damage(biggest(copy / "checkpoints" / "16"))
    printed = tiny("--resume", "--out", copy)
    assert re.search(rf"checkpoint 16 in {copy}/checkpoints is damaged \(.+\)", printed)
    assert "resumed after step 8" in printed
    assert_identical(copy, first[0])
    steps = [record["step"] for record in read_metrics(copy / "metrics.jsonl")]
    assert steps == [8, 8, 16, 16]


def test_no_whole_checkpoint_is_one_sentence(copy):
    for step in (8, 16):
        flip_a_byte(biggest(copy / "checkpoints" / str(step)))
    before = bytes_of(copy)
    sentence = fails("--tiny", "--resume", "--out", copy)
    assert sentence.startswith(f"no checkpoint is whole: checkpoint 16 in {copy}/checkpoints is damaged (")
    assert sentence.endswith("Start again in another folder")
    assert bytes_of(copy) == before


def test_training_that_diverges_keeps_the_last_good_checkpoint(first, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "make_schedule", lambda *_, **__: lambda step: jnp.where(step < 11, 1e-3, jnp.inf))
    code, _, err = run("--tiny", "--out", tmp_path / "run")
    assert (code, err) == (1, "error: the loss or a gradient is not finite at step 13 (seen in steps 9 to 16)\n")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["8"]
    shutil.rmtree(shutil.copytree(first[0], tmp_path / "first") / "checkpoints" / "16")
    assert_identical(tmp_path / "run", tmp_path / "first")
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_ends_as_if_there_had_been_none(first, tmp_path, monkeypatch, number, code):
    fit = training.fit

    def interrupted(*args, log, **options):
        def log_and_stop(kind, step, values):
            log(kind, step, values)
            if kind == "test":
                signal.raise_signal(number)

        return fit(*args, log=log_and_stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", interrupted)
        found, _, err = run("--tiny", "--out", tmp_path / "run")
    assert found == code
    assert re.fullmatch(rf"stopped by {number.name} after step \d+: saved; go on with --resume\n", err)
    assert "resumed after step" in tiny("--resume", "--out", tmp_path / "run")
    assert_identical(tmp_path / "run", first[0])


@pytest.mark.parametrize("flags", ["--batch-size 100", "--batch-size 0", "--batch-size 128 --accumulate 3"])
def test_batches_that_do_not_go_over_the_devices(tmp_path, flags):
    sentence = fails(*flags.split(), "--out", tmp_path / "run")
    assert re.match(r"batch size \d+: it must be a multiple of the number of devices, 8", sentence)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_in_use_of_another_configuration_or_not_a_run_is_left_alone(copy, tmp_path):
    before = bytes_of(copy)
    assert fails("--tiny", "--out", copy).startswith(f"run folder {copy} holds a run: add --resume")
    sentence = fails("--tiny", "--resume", "--model", "resnet18", "--seed", 1, "--out", copy)
    assert sentence.startswith(
        f"run folder {copy} is of a run with model 'simple_cnn', not 'resnet18' (and seed): resume with the settings"
    )
    settings = json.loads(before["config.json"])["settings"]
    holder = Run(copy, settings, resume=True)
    before[".lock"] = (copy / ".lock").read_bytes()
    assert re.search(r"is in use by process \d+: wait", fails("--tiny", "--resume", "--out", copy))
    holder.close()
    assert bytes_of(copy) == before

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert "holds files that are no run" in fails("--tiny", "--out", tmp_path / "other")
    assert "is a file" in fails("--tiny", "--out", tmp_path / "other" / "notes.txt")
    assert bytes_of(tmp_path / "other") == {"notes.txt": b"mine"}


@pytest.mark.usefixtures("undrawn")
def test_other_data_or_another_network_is_refused_and_the_folder_left_as_it_was(pictures, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    flags = ("--dataset", pictures, "--tiny", "--out", folder)
    tiny(*flags)
    before = bytes_of(folder)

    def refused():
        sentence = fails(*flags, "--resume")
        after = bytes_of(folder)
        after[".lock"] = before[".lock"]
        assert after == before
        return sentence

    with monkeypatch.context() as patch:
        patch.setattr(models, "create", lambda name, **options: SimpleCNN(head="average", **options))
        sentence = refused()
    assert sentence.startswith(f"checkpoint {folder}/checkpoints/1 is of another model, optimiser or dtype: it has ")
    assert "float32[576, 128]" in sentence

    ours = f"run folder {folder} is of a run with data '16 train, 4 test, 2 classes; "
    image = (pictures / "light" / "3.png").rename(pictures / "light" / "another.png")
    assert refused().startswith(ours)  # as many, of other names
    image.unlink()
    assert re.match(rf"{re.escape(ours)}.*', not '1\d train, \d test, 2 classes; .*: resume with the", refused())
    shutil.copytree(pictures / "light", pictures / "lighter")  # a third class
    assert refused().startswith(ours)


@pytest.mark.usefixtures("undrawn")
def test_the_folder_given_as_a_dot_names_the_run(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures)
    assert tiny("--dataset", ".").rstrip().endswith("report: runs/pictures/report.html")
