"""`python -m experiments.segment`, and `predict` with what it trained, on scenes and on a folder with masks."""

import json
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from commands import fails, succeeds
from PIL import Image

from experiments import predict, segment


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, printed) of a tiny run on scenes."""
    folder = tmp_path_factory.mktemp("segment") / "run"
    return folder, succeeds(segment, "--tiny", "--out", folder)


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    """Thirty pictures of 48×32 with a green disc on brown, and their masks."""
    folder, rng = tmp_path_factory.mktemp("leaves"), np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    (folder / "classes.txt").write_text("soil\nleaf\n")
    y, x = np.mgrid[:32, :48]
    for i in range(30):
        disc = (y - rng.integers(8, 24)) ** 2 + (x - rng.integers(8, 40)) ** 2 < rng.integers(5, 8) ** 2
        colours = np.where(disc[..., None], (60, 160, 50), (120, 90, 60)) + rng.integers(-20, 20, (32, 48, 3))
        Image.fromarray(colours.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(disc.astype(np.uint8)).save(folder / "masks" / f"{i}.png")
    return folder


def test_what_a_run_leaves(run):
    folder, printed = run
    assert printed.rstrip().endswith("report.html")
    summary = json.loads((folder / "summary.json").read_text())
    assert all(isinstance(value, int | float) for value in summary.values())
    for name in ("test_miou", "test_dice", "test_boundary_f1", "test_pixel_accuracy", "train_seconds"):
        assert math.isfinite(summary[name]), name
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert {"samples", "predictions", "worst", "confusion", "curves"} <= figures
    assert "python -m experiments.segment --tiny" in re.sub("<[^>]+>", "", (folder / "report.html").read_text())


def test_a_folder_with_masks(leaves, tmp_path):
    """From training to a drawn picture, whose disc has the colour of its class."""
    folder = tmp_path / "run"
    flags = (
        "--dataset",
        leaves,
        "--image-size",
        48,
        "--epochs",
        12,
        "--batch-size",
        8,
        "--loss",
        "cross_entropy",
        "dice",
    )
    succeeds(segment, *flags, "--out", folder)
    assert json.loads((folder / "summary.json").read_text())["test_miou"] > 0.8
    picture = leaves / "images" / "0.png"
    assert "leaf" in succeeds(predict, folder, picture, "--out", tmp_path)
    files = tmp_path / "0.found.png", leaves / "masks" / "0.png", picture
    drawn, truth, before = (plt.imread(file) for file in files)
    zoom, truth = drawn.shape[0] // 32, truth > 0
    before = before.repeat(zoom, 0).repeat(zoom, 1)
    changed = (np.abs(drawn - before).sum(-1) > 0.01)[zoom // 2 :: zoom, zoom // 2 :: zoom]
    assert (changed & truth).sum() / (changed | truth).sum() > 0.8


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--model unet_smal", "unknown model 'unet_smal'"),
        ("--dataset nowhere", "unknown data set 'nowhere'"),
        ("--loss dise", "unknown --loss 'dise'"),
        ("--class-weights 1 2", "class_weights is (1.0, 2.0): give 11 numbers"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, monkeypatch, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert fails(segment, "--tiny", *flags.split()).startswith(sentence)
    assert list(tmp_path.iterdir()) == []
