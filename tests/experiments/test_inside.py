"""The scripts that look inside, in little: what they write, and what they refuse."""

import json

import pytest
from commands import fails, succeeds

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


@pytest.mark.slow
def test_gradients(tmp_path):
    out = succeeds(gradients, "--tiny", "--out", tmp_path / "run")
    assert "conv1/kernel" in out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["eigenvalue_1_0"] >= summary["eigenvalue_2_0"]
    assert -1 <= summary["mean_cosine_0"] <= 1
    assert summary["loss_2"] > 0


def test_they_refuse_counts_below_one():
    assert fails(gradients, "--looks", "1") == "--looks is 1: it must be 2 or more"
    assert fails(gradients, "--batch-size", "0") == "--batch-size is 0: it must be 1 or more"
    assert fails(translation, "--seeds", "1") == "--seeds is 1: it must be 2 or more"
