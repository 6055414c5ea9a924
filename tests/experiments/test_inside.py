"""The scripts that look inside, in little: what they write, and what they refuse."""

import json

import numpy as np
import optax
import pytest
from commands import fails, succeeds

from cnn_jax import analysis, models
from cnn_jax.errors import InputError
from experiments import classify, explained, gradients, interpret, translation

METHODS = ("gradient", "guided", "IG", "Smooth", "occlusion", "RISE", "Grad-CAM")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inside") / "run"
    succeeds(classify, "--tiny", "--out", folder)
    return folder


@pytest.mark.slow
def test_interpret(run, tmp_path):
    out = succeeds(interpret, run, "--tiny", "--out", tmp_path / "inside")
    assert "random map" in out
    summary = json.loads((tmp_path / "inside" / "summary.json").read_text())
    # An edge detector knows nothing of the network: whatever its weights, its map is the same.
    assert summary["edges_randomisation"] == pytest.approx(1)
    assert summary["edges_sensitivity"] > 0
    page = (tmp_path / "inside" / "report.html").read_text()
    assert page.count("data:image/png") == 5
    for method in METHODS:
        assert f"measuring {method}\n" in out
        assert method in page
        assert summary[f"{method}_blank"] == 0
        assert 0 < summary[f"{method}_deletion"] < 1
    assert summary["IG_completeness"] < summary["gradient_completeness"]
    for words in ("linear probe", "2 draws of the weights", "8×8 pixels that a unit sees", ">3×3</td>", ">8×8</td>"):
        assert words in page


@pytest.mark.slow
def test_interpret_without_relus(run, tmp_path, monkeypatch, undrawn):
    """What cannot be is left out, and said; the rest is there."""
    create, card = models.create, analysis.report_card
    monkeypatch.setattr(models, "create", lambda name, **options: create(name, **options | {"activation": "gelu"}))
    kept = []

    def small_card(key, score, images, methods, **options):
        kept.extend(methods)
        return card(key, score, images, {}, **options)

    monkeypatch.setattr(analysis, "report_card", small_card)
    succeeds(interpret, run, "--tiny", "--out", tmp_path / "inside")
    assert kept == [method for method in METHODS if method != "guided"]
    page = (tmp_path / "inside" / "report.html").read_text()
    assert "Guided back-propagation is left out: simple_cnn has no ReLUs." in page


def test_the_stage_of_a_cam():
    maps = {"conv1": (1, 28, 28, 32), "conv2": (1, 14, 14, 64), "logits": (1, 10)}
    assert interpret.coarsest(maps) == "conv2"
    assert interpret.coarsest({"down": (1, 4, 4, 8), "up": (1, 8, 8, 8), "logits": (1, 8, 8, 2)}) == "down"
    with pytest.raises(InputError, match=r"no stage with places, .* only logits"):
        interpret.coarsest({"logits": (1, 10)})


@pytest.mark.slow
def test_interpret_refuses(run, tmp_path):
    assert fails(interpret, run, "--stage", "conv9", "--tiny", "--out", tmp_path / "a").startswith(
        "unknown stage 'conv9': did you mean 'conv2'"
    )
    assert fails(interpret, tmp_path / "none").startswith("there is no run folder")
    assert fails(interpret, run, "--squares", "0", "--out", tmp_path / "a") == "--squares is 0: it must be 1 or more"
    for flag in ("images", "steps", "masks", "draws"):
        sentence = f"--{flag} is 0: it must be 1 or more"
        assert fails(interpret, run, f"--{flag}", "0", "--out", tmp_path / "a") == sentence
    assert not (tmp_path / "a").exists()
    assert fails(interpret, run, "--model", "simple_cnn").startswith("--model and --weights go together")


@pytest.mark.slow
def test_translation(tmp_path, monkeypatch, undrawn):
    heat_map = translation.translation.heat_map

    def of_nothing_kept(*args, **options):  # but where nothing moves
        seen = heat_map(*args, **options)
        return seen._replace(kept=np.where(seen.down[:, None] | seen.right[None], 0, seen.kept))

    monkeypatch.setattr(translation.translation, "heat_map", of_nothing_kept)
    succeeds(translation, "--tiny", "--out", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for way in ("max,_flattened", "adaptive,_averaged"):
        for stage in ("conv1", "conv2"):
            assert summary[f"{way}_circular_{stage}_error"] < 1e-5  # rounding
            assert summary[f"{way}_zeros_{stage}_error"] > 1e-3
    # Averaged over all places the answer is the same wherever the image is; flattened it is not.
    assert summary["adaptive,_averaged_circular_logits_error"] < 1e-5
    assert summary["max,_flattened_circular_logits_error"] > 1e-3
    assert summary["max,_flattened_kept"] == 0  # images that are not moved do not count
    page = (tmp_path / "run" / "report.html").read_text()
    for way in ("max, flattened", "adaptive, averaged"):
        for what in ("Accuracy", "Probability of the true class"):
            assert f"{what} by shift, in per cent: {way}." in page


def test_what_translation_expects_depends_on_the_size():
    assert "conv1 and conv2, and in the logits where the head averages" in translation.expected((28, 32))
    assert "in conv1 and conv2 alone: of images of 30×28" in translation.expected((30, 28))
    assert "in conv1 alone: of images of 28×27" in translation.expected((28, 27))


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """(what is printed, what is reported, the folder) of three steps of SGD at 0.5, batch norm and dropout."""
    kept, folder = {"traced": []}, tmp_path_factory.mktemp("gradients") / "run"
    write, create, sgd, density = gradients.report.write, models.create, optax.sgd, gradients.curvature.spectrum
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients.report, "write", lambda *args, **of: kept.update(of) or write(*args, **of))
        patch.setattr(models, "create", lambda name, **options: create(name, norm="batch", dropout=0.5, **options))
        patch.setattr(optax, "adam", lambda rate: sgd(0.5))
        spectrum = lambda *args, **of: kept["traced"].append(1) or density(*args, **of)  # noqa: E731
        patch.setattr(gradients.curvature, "spectrum", spectrum)
        out = succeeds(gradients, "--tiny", "--out", folder)
    return out, kept, folder


@pytest.mark.slow
def test_the_gradient_that_is_shown_is_that_of_the_step(watched):
    """The update of SGD is the gradient times the learning rate, whatever batch norm and dropout do."""
    history = watched[1]["history"]
    assert set(history["gradient"]) == {"conv1/kernel", "conv2/kernel", "fc1/kernel", "logits/kernel"}
    for kernel, norms in history["gradient"].items():
        assert list(norms) == [0, 1, 2]
        for step, norm in norms.items():
            assert 0.5 * norm == pytest.approx(history["update"][kernel][step], rel=1e-3)


@pytest.mark.slow
def test_looks_at_gradients(watched):
    out, kept, folder = watched
    assert len(kept["looks"]) == 2
    assert len(kept["traced"]) == 1  # one program for all looks
    assert "conv1/kernel" in out
    assert ["step 0:" in out, "step 2:" in out, "step 3:" in out] == [True, False, True]  # after the last, too
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["loss_0"] == pytest.approx(2.3, abs=0.5)  # of ten classes at chance: log 10
    assert summary["loss_3"] != summary["loss_0"]
    for step in (0, 3):
        values = [summary[f"eigenvalue_{k}_{step}"] for k in (1, 2, 3)]
        assert values == sorted(values, reverse=True)
        assert values[0] > 0
        assert 0 <= summary[f"negative_cosines_{step}"] < 1
        assert abs(summary[f"mean_cosine_{step}"]) < 1
    page = (folder / "report.html").read_text()
    assert "Cosines between 4 examples, noise scale of 16, Hessian of the mean loss of 8" in page


def test_the_true_boxes_of_what_a_detector_found():
    """The best of its class, if it fits; a detector that is wrong of the place does not judge its own maps."""
    truth = {
        "boxes": np.array([[[0, 0, 10, 10], [2, 0, 12, 10], [1, 0, 11, 10]]] * 3, np.float32),
        "label": np.array([[4, 4, 5]] * 3),
        "objects": np.array([[True, True, True], [True, False, True], [True] * 3]),
    }
    found = np.array([[1.5, 0, 11.5, 10], [2, 0, 12, 10], [5.1, 0, 15, 10]], np.float32)
    expected = [[2, 0, 12, 10], [0, 0, 10, 10], [0, 0, 0, 0]]
    np.testing.assert_array_equal(explained.true_boxes(found, np.array([4, 4, 5]), truth), expected)


def test_they_refuse_counts_below_one():
    assert fails(gradients, "--looks", "1") == "--looks is 1: it must be 2 or more"
    many = "--looks is 3: before, between and after 1 steps there are 2"
    assert fails(gradients, "--steps", "1", "--looks", "3") == many
    assert fails(gradients, "--batch-size", "0") == "--batch-size is 0: it must be 1 or more"
    assert fails(translation, "--seeds", "1") == "--seeds is 1: it must be 2 or more"
