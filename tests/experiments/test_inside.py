"""The scripts that look inside, in little: what they write, and what they refuse."""

import json

import optax
import pytest
from commands import fails, succeeds

from cnn_jax import models
from experiments import classify, gradients, interpret, translation


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
    assert summary["edges_max_sensitivity"] > 0
    page = (tmp_path / "inside" / "report.html").read_text()
    assert page.count("data:image/png") == 2
    assert "measuring IG" in out
    assert all(method in page for method in ("gradient", "IG", "Grad-CAM"))


@pytest.mark.slow
def test_interpret_refuses(run, tmp_path):
    assert fails(interpret, run, "--stage", "conv9", "--tiny", "--out", tmp_path / "a").startswith(
        "unknown stage 'conv9': did you mean 'conv2'"
    )
    assert fails(interpret, tmp_path / "none").startswith("there is no run folder")
    assert fails(interpret, run, "--squares", "0", "--out", tmp_path / "a") == "--squares is 0: it must be 1 or more"
    assert fails(interpret, run, "--model", "simple_cnn").startswith("--model and --weights go together")


@pytest.mark.slow
def test_translation(tmp_path):
    succeeds(translation, "--tiny", "--out", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for way in ("max,_flattened", "adaptive,_averaged"):
        for stage in ("conv1", "conv2"):
            assert summary[f"{way}_circular_{stage}_error"] < 1e-5  # rounding
            assert summary[f"{way}_zeros_{stage}_error"] > 1e-3
    # Averaged over all places the answer is the same wherever the image is; flattened it is not.
    assert summary["adaptive,_averaged_circular_logits_error"] < 1e-5
    assert summary["max,_flattened_circular_logits_error"] > 1e-3


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """(what is printed, the norms over training, the folder) of three steps of SGD at 0.5, batch norm and dropout."""
    kept, folder = {}, tmp_path_factory.mktemp("gradients") / "run"
    write, create, sgd = gradients.report.write, models.create, optax.sgd
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients.report, "write", lambda *args, **of: kept.update(of) or write(*args, **of))
        patch.setattr(models, "create", lambda name, **options: create(name, norm="batch", dropout=0.5, **options))
        patch.setattr(optax, "adam", lambda rate: sgd(0.5))
        out = succeeds(gradients, "--tiny", "--out", folder)
    return out, kept["history"], folder


@pytest.mark.slow
def test_the_gradient_that_is_shown_is_that_of_the_step(watched):
    """The update of SGD is the gradient times the learning rate, whatever batch norm and dropout do."""
    _, history, _ = watched
    assert set(history["gradient"]) == {"conv1/kernel", "conv2/kernel", "fc1/kernel", "logits/kernel"}
    for kernel, norms in history["gradient"].items():
        assert list(norms) == [0, 1, 2]
        for step, norm in norms.items():
            assert 0.5 * norm == pytest.approx(history["update"][kernel][step], rel=1e-3)


@pytest.mark.slow
def test_looks_at_gradients(watched):
    out, _, folder = watched
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


def test_they_refuse_counts_below_one():
    assert fails(gradients, "--looks", "1") == "--looks is 1: it must be 2 or more"
    many = "--looks is 3: before, between and after 1 steps there are 2"
    assert fails(gradients, "--steps", "1", "--looks", "3") == many
    assert fails(gradients, "--batch-size", "0") == "--batch-size is 0: it must be 1 or more"
    assert fails(translation, "--seeds", "1") == "--seeds is 1: it must be 2 or more"
