"""`python -m experiments.segment`, and `predict` with what it trained, on scenes and on a set made by hand."""

import json
import math
import re
from importlib.util import find_spec
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import squares
from commands import fails, succeeds
from PIL import Image

from cnn_jax import data, models
from experiments import explained, interpret, looks, predict, segment
from experiments.runs import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, printed) of a tiny run on scenes."""
    folder = tmp_path_factory.mktemp("segment") / "run"
    return folder, succeeds(segment, "--tiny", "--optimiser", "adam", "--out", folder)


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_is_explained_of_a_segmenter(run):
    """Of the class that covers most of an image, the ground apart, the probability at its surest pixel."""
    p = np.full((2, 4, 4, 11), 0.01, np.float32)
    p[..., 0] = 0.9
    p[0, 1, :2, 3], p[0, 3, :, 5] = 0.95, 0.93
    p[0, 3, 2, 5] = 0.97
    p[1, 2, 1, 7] = 0.91
    images, truth = jnp.zeros((2, 64, 64, 3)), np.full((2, 4, 4), 3, np.uint8)
    about, variables = load_run(run[0])

    class Told(nn.Module):
        @nn.compact
        def __call__(self, images, *, train=False):
            return {"logits": jnp.log(p[: len(images)])}

    truth[0, 1, 1:] = 5
    outputs = Told().apply({}, images)
    rows, score, titles, _, objects = explained._pixels(about, Told(), variables, images, outputs, {"map": truth})
    assert [title.split("\n")[1] for title in titles] == ["at row 3, column 2", "at row 2, column 1"]
    assert titles[0].startswith("4\n")
    assert titles[1].startswith("6\n")
    np.testing.assert_allclose(score()(images[rows]), np.log([0.97, 0.91]), rtol=1e-5)
    # Where it truly is: the pixels of class 5, whatever the network says; and nowhere, for there is none of class 7.
    np.testing.assert_array_equal(np.argwhere(objects), [[0, 1, 1], [0, 1, 2], [0, 1, 3]])

    real = explained.load(interpret.Config(run[0], model=None), 4)
    outputs = jax.nn.softmax(real.model.apply(real.variables, real.images)["logits"])
    assert (np.asarray(real.judged(real.images)) <= outputs.max((1, 2, 3)) + 1e-6).all()


@pytest.mark.slow
def test_a_set_in_cocos_form(tmp_path):
    """Polygons, run lengths and crowds, which count nowhere, from training to a drawn picture that it never saw;
    tested with mirrored images too."""
    path, folder = squares.make(tmp_path / "squares"), tmp_path / "run"
    flags = ("--image-size", 48, "--epochs", 12, "--batch-size", 8, "--loss", "cross_entropy", "dice", "--test-flip")
    flags += ("--optimiser", "adam", "--learning-rate", 3e-3)  # compiled in a fraction of Muon's time
    assert "3 classes" in succeeds(segment, "--dataset", path, *flags, "--out", folder)
    miou = json.loads((folder / "summary.json").read_text())["test_miou"]
    assert miou > 0.7
    assert miou == pytest.approx(mirrored_too(path, folder), abs=1e-3)

    picture = np.random.default_rng(9).integers(90, 140, (40, 60, 3)).astype(np.uint8)
    truth = np.zeros((40, 60), bool)
    truth[12:26, 30:44] = True
    picture[truth] = squares.COLOURS["blue"]
    Image.fromarray(picture).save(tmp_path / "new.png")
    printed = succeeds(predict, folder, tmp_path / "new.png", "--out", tmp_path)
    share = float(re.search(r"blue +([\d.]+)%", printed)[1]) / 100
    assert share == pytest.approx(truth.mean(), abs=0.03)
    drawn = np.asarray(Image.open(tmp_path / "new.found.png")).astype(int)
    zoom = drawn.shape[1] // 60
    assert len(drawn) > 40 * zoom  # below is the legend
    changed = (drawn[zoom // 2 :: zoom, zoom // 2 :: zoom][:40] != picture).any(-1)
    assert (changed & truth).sum() / (changed | truth).sum() > 0.85


def mirrored_too(path, folder):
    """The mean IoU of the mean of what the run in `folder` says of each test image and of its mirror image."""
    about, variables = load_run(folder)
    test = data.load_annotated(path, "map", image_size=48).test
    images = (test["image"] / 255 - np.float32(about["mean"])) / np.float32(about["std"])
    model = models.create(about["model"], **about["options"])
    look = jax.jit(lambda images: jax.nn.softmax(model.apply(variables, images)["logits"]))
    found = (look(images) + look(images[:, :, ::-1])[:, :, ::-1]).argmax(-1)
    known = test["map"] != 255
    found, true = np.asarray(found)[known], test["map"][known]
    classes = np.union1d(found, true)
    return np.mean([((found == c) & (true == c)).sum() / ((found == c) | (true == c)).sum() for c in classes])


class Edges(nn.Module):
    """What it finds depends on where a window ends."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Conv(3, (5, 5))(images)


CROPS = {"layout": "crop", "image_shape": [8, 8, 1], "class_names": "abc", "mean": [0.4], "std": [0.2]}


@pytest.mark.parametrize("shape", [(8, 8), (20, 27), (5, 30), (3, 2)])
def test_crops_are_how_a_network_that_learned_from_them_looks(key, shape):
    """In windows of their size that overlap by half, at the picture's own scale."""
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 1)).astype(np.uint8)
    model = Edges()
    variables = model.init(key, jnp.zeros((1, 8, 8, 1)))
    wide = picture
    while min(wide.shape[:2]) < 8:
        wide = np.concatenate([wide, wide[::-1]]) if len(wide) < 8 else np.concatenate([wide, wide[:, ::-1]], axis=1)
    wide = wide[: max(8, shape[0]), : max(8, shape[1])]
    seen = np.float32((wide / 255 - 0.4) / 0.2)
    expected = np.zeros((*wide.shape[:2], 3))
    starts = [sorted({*range(0, n - 8, 4), n - 8}) for n in wide.shape[:2]]
    windows = [(slice(y, y + 8), slice(x, x + 8)) for y in starts[0] for x in starts[1]]
    shares = jax.nn.softmax(model.apply(variables, np.stack([seen[window] for window in windows])))
    for window, p in zip(windows, shares, strict=True):
        expected[window] += p  # as often for each class
    found = looks.segmenter(CROPS, model, variables)(picture)
    np.testing.assert_array_equal(found, expected.argmax(-1)[: shape[0], : shape[1]])


def test_other_networks_see_a_picture_as_a_whole(key):
    """Laid into a square, of half its size: four pixels have the class of one."""
    picture = np.random.default_rng(0).integers(0, 256, (10, 16, 1)).astype(np.uint8)
    model = Edges()
    variables = model.init(key, jnp.zeros((1, 8, 8, 1)))
    square = np.full((8, 8, 1), 114.0)
    square[:5] = np.round(picture.reshape(5, 2, 8, 2, 1).mean((1, 3)))
    expected = model.apply(variables, np.float32((square / 255 - 0.4) / 0.2)[None])[0, :5].argmax(-1)
    found = looks.segmenter(CROPS | {"layout": "letterbox"}, model, variables)(picture)
    assert (found == np.repeat(np.repeat(expected, 2, 0), 2, 1)).mean() > 0.95  # halves are rounded in two ways


def test_what_is_explained_of_crops_is_the_middle(tmp_path):
    levels = np.arange(20 * 27).reshape(20, 27).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.tif")
    middle, _ = looks.read_picture(tmp_path / "deep.tif", CROPS | {"stretch": [0, 100]})
    np.testing.assert_allclose(middle[..., 0], levels[6:14, 9:17] / 539 * 255, atol=0.51)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("stardist"), reason="needs the package stardist")
def test_predict_finds_the_nuclei_of_the_quarter_that_was_held_out(tmp_path):
    flags = ("--image-size", 64, "--epochs", 4, "--optimiser", "adam", "--learning-rate", 3e-3)
    succeeds(segment, "--dataset", "nuclei", *flags, "--out", tmp_path / "run")
    folder = Path(find_spec("stardist").submodule_search_locations[0]) / "data" / "images"
    about, variables = load_run(tmp_path / "run")
    ((_, picture, _),) = predict.to_draw_on(predict.Config(tmp_path / "run", (folder / "img2d.tif",)), about)
    test = data.load_annotated("nuclei", "map", image_size=64).test
    np.testing.assert_array_equal(picture[256:320, 256:320], test["image"][0])
    found = looks.segmenter(about, models.create(about["model"], **about["options"]), variables)(picture)
    found, true = (x[256:, 256:] > 0 for x in (found, np.asarray(Image.open(folder / "mask2d.tif"))))
    assert (found & true).sum() / (found | true).sum() > 0.8


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--model unet_smal", "unknown model 'unet_smal'"),
        ("--dataset nowhere", "unknown data set 'nowhere'"),
        ("--loss dise", "unknown --loss 'dise'"),
        ("--class-weights 1 2", "class_weights is (1.0, 2.0): give 11 numbers"),
        ("--test-scales 0 1", "looks at scales (0.0, 1.0): give one or more, each a number above 0"),
        ("--test-window 0", "looks through a window of 0 pixels: its side must be 1 or more"),
        ("--model unet --test-window 20", "unet: images of shape (1, 20, 20, 3), expected"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, monkeypatch, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert fails(segment, "--tiny", *flags.split()).startswith(sentence)
    assert list(tmp_path.iterdir()) == []
