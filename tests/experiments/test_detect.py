"""`python -m experiments.detect`, and `predict` with what it trained, on scenes and on a set made by hand."""

import json
import math
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import squares
from commands import fails, succeeds
from PIL import Image

from cnn_jax import tasks
from cnn_jax.models.catalogue import MODELS
from experiments import classify, detect, explained, interpret, looks, predict, recipe, segment
from experiments.runs import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, printed) of a tiny run on scenes."""
    folder = tmp_path_factory.mktemp("detect") / "run"
    return folder, succeeds(detect, "--tiny", "--optimiser", "adam", "--out", folder)


@pytest.mark.slow
def test_what_a_run_leaves(run):
    folder, printed = run
    assert printed.rstrip().endswith("report.html")
    summary = json.loads((folder / "summary.json").read_text())
    assert all(isinstance(value, int | float) for value in summary.values())
    for name in ("test_ap", "test_ap50", "test_ar100", "test_voc_ap", "test_loss", "train_seconds"):
        assert math.isfinite(summary[name]), name
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert {"samples", "counts", "detections", "precision_recall", "misses", "curves"} <= figures
    html = (folder / "report.html").read_text()
    assert "COCO" in html
    assert "A layer that runs again" in html  # the head, on each floor of the pyramid
    about = json.loads((folder / "model.json").read_text())
    assert about["task_options"] == {"nms_threshold": 0.5}
    assert "python -m experiments.detect --tiny" in re.sub("<[^>]+>", "", html)


@pytest.mark.slow
def test_predict_draws_boxes(run, tmp_path):
    picture = tmp_path / "grey.png"
    Image.fromarray(np.full((50, 90, 3), 128, np.uint8)).save(picture)
    printed = succeeds(predict, run[0], picture, "--threshold", 0.01, "--out", tmp_path / "drawn")
    assert "drawn in" in printed
    with Image.open(tmp_path / "drawn" / "grey.found.png") as drawn:
        assert drawn.width / drawn.height == 90 / 50


@pytest.mark.slow
def test_mistakes_of_predict(run, tmp_path):
    picture = tmp_path / "grey.png"
    Image.new("RGB", (9, 5)).save(picture)
    assert fails(predict, run[0], picture, "--threshold", "nan").startswith("--threshold is nan")
    assert fails(predict, run[0], picture, "--out", picture).startswith(f"cannot write {picture / 'grey.found.png'}: ")


@pytest.mark.parametrize(("threshold", "count"), [(0.5, 1), (0.6, 2)])
def test_boxes_are_dropped_as_in_the_run(threshold, count):
    """Of two boxes that share 20 of 36 columns, by what the run's model.json says."""

    class Two(nn.Module):
        @nn.compact
        def __call__(self, images):
            logits = jnp.full((1, 5, 5, 1), -9.0).at[0, 0, :2].set(9)
            distances = jnp.tile(jnp.array([0, 0, 3.5, 0.5]), (1, 5, 5, 1))  # in strides
            return [{"logits": logits, "distances": distances, "centerness": jnp.full((1, 5, 5), 9.0)}]

        strides = (8,)

    about = {"class_names": ["a"], "image_shape": [40, 40, 3], "mean": [0.5] * 3, "std": [1.0] * 3}
    about |= {"task_options": {"nms_threshold": threshold}}
    found = looks.detector(about, Two(), {})(np.zeros((20, 20, 3), np.uint8))
    boxes = found["boxes"][found["objects"]]
    # Half as large in the picture as in the square that is seen.
    np.testing.assert_allclose(sorted(boxes.tolist()), [[0, 0, 14, 2], [4, 0, 18, 2]][:count], atol=1e-4)


@pytest.mark.slow
def test_what_is_explained_of_a_detector(run):
    """Its surest box of each image: one that the network itself is at least as sure of as the box's score says."""
    found = explained.load(interpret.Config(run[0]), 4)
    assert 1 <= len(found.raw) == len(found.titles) <= 4
    assert found.objects.shape == (len(found.raw), 4)
    task = tasks.detect(10, strides=found.model.strides)
    best = np.asarray(task.predict(found.model.apply(found.variables, found.images))["scores"]).max(1)
    p = np.asarray(found.judged(found.images))
    assert (p >= best**2 - 1e-6).all()  # the score is the root of p times the centre-ness
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-found.score(found.images))), rtol=1e-4)
    score, images = found.head(1)
    np.testing.assert_allclose(score(images), found.score(found.images)[:1], rtol=1e-3)


@pytest.mark.slow
def test_a_set_in_cocos_form(tmp_path):
    """From training to a drawn picture; a real if small detector, which finds the squares of a picture it never saw."""
    folder = tmp_path / "run"
    flags = ("--dataset", squares.make(tmp_path / "squares"), "--image-size", 64, "--epochs", 20, "--batch-size", 8)
    flags += ("--optimiser", "adam", "--learning-rate", 3e-3)  # compiled in a fraction of Muon's time
    printed = succeeds(detect, *flags, "--out", folder)
    assert "red" in printed
    assert "blue" in printed
    assert json.loads((folder / "summary.json").read_text())["test_ap50"] > 0.5
    picture = np.full((40, 60, 3), 115, np.uint8)
    picture[12:26, 30:44] = squares.COLOURS["blue"]
    Image.fromarray(picture).save(tmp_path / "new.png")
    lines = succeeds(predict, folder, tmp_path / "new.png", "--out", tmp_path).splitlines()
    best = next(line.split() for line in lines if line.strip().startswith(("red", "blue")))
    assert best[0] == "blue"
    np.testing.assert_allclose([float(x) for x in best[2:]], [30, 12, 44, 26], atol=3)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_detectors_and_segmenters_start_from_a_classifiers_backbone(pictures, tmp_path, monkeypatch):
    """Of grey images, for coloured ones. The networks are as thin as can be, and only the classifier is trained."""
    for name in ("resnet18", "fcos_resnet18_fpn", "unet_resnet18"):
        monkeypatch.setitem(MODELS, name, partial(MODELS[name], depths=(1, 1, 1, 1), width=8))
    folder, shapes = tmp_path / "run", squares.make(tmp_path / "squares")
    succeeds(classify, "--model", "resnet18", "--dataset", pictures, "--tiny", "--ema", "None", "--out", folder)
    _, variables = load_run(folder)
    params = {name: values for name, values in variables["params"].items() if name != "logits"}
    params["stem_conv"] = {"kernel": np.repeat(params["stem_conv"]["kernel"], 3, axis=2) / 3}

    def train(script, *_, variables, **_options):
        jax.tree.map(np.testing.assert_array_equal, variables["params"]["backbone"], params)
        raise InterruptedError(script)

    monkeypatch.setattr(recipe, "train", train)
    for script, model in ((detect, "fcos_resnet18_fpn"), (segment, "unet_resnet18")):
        config = script.Config(model=model, backbone=folder, dataset=str(shapes), image_size=32)
        with pytest.raises(InterruptedError, match=script.__name__.split(".")[-1]):
            script.main(config)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--model fcos_smal", "unknown model 'fcos_smal'"),
        ("--dataset nowhere.json", "cannot read nowhere.json"),
        ("--dataset scenes/mnist_1k", "unknown data set 'mnist_1k'"),
        ("--augment flop", "unknown --augment 'flop'"),
        ("--backbone nowhere", "there is no run folder nowhere"),
        ("--backbone nowhere --weights a.pth", "--weights and --backbone both say where to start"),
        ("--scenes 0", "scenes: train 0"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, monkeypatch, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert fails(detect, "--tiny" if "--scenes" not in flags else "--seed=0", *flags.split()).startswith(sentence)
    assert list(tmp_path.iterdir()) == []
