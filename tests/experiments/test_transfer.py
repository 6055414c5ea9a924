"""`python -m experiments.transfer`, tiny, with weights of a network that was trained here."""

import json

import jax
import jax.numpy as jnp
import pytest
from commands import fails, succeeds

from cnn_jax import models
from experiments import transfer


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A SimpleCNN for seven classes, as a file of safetensors under PyTorch's names."""
    model = models.create("simple_cnn", num_classes=7)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    return models.save_pretrained(model, variables, tmp_path_factory.mktemp("weights") / "net.safetensors")


def flags(weights, *more):
    data = ("--dataset", "mnist_10k", "--image-size", 16, "--stage", "fc1")
    return ("--tiny", "--model", "simple_cnn", "--weights", weights, *data, *more)


@pytest.mark.slow
def test_a_run(weights, tmp_path):
    printed = succeeds(transfer, *flags(weights, "--freeze", "conv1", "--out", tmp_path / "run"))
    assert f"6 tensors (names: torch) from {weights}; logits/bias, logits/kernel drawn anew" in printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for way in ("from_scratch", "linear_probe", "fine_tuned"):
        for shots in (1, 2):
            assert 0 <= summary[f"{way}_{shots}_accuracy"] <= 1
            assert summary[f"{way}_{shots}_interval"] >= 0
    page = (tmp_path / "run" / "report.html").read_text()
    for text in ("mean and 95 % interval over 2 seeds", "Three ways to learn", "linear probe", "MNIST"):
        assert text in page
    assert (tmp_path / "run" / "figures" / "transfer.png").exists()


def test_mistakes_are_said_before_anything_is_written(weights, tmp_path):
    def refused(*more):
        return fails(transfer, *flags(weights, "--out", tmp_path / "run", *more))

    assert "freeze 'cnov': no parameter has such a path; they begin with conv1, conv2, fc1, logits" in refused(
        "--freeze", "cnov"
    )
    assert "'flop'" in refused("--augment", "flop")
    (tmp_path / "foreign.pth").write_bytes(b"no weights at all")
    assert "neither a file of torch.save nor one of safetensors" in refused("--weights", tmp_path / "foreign.pth")
    assert "layer decay 2.0: it must be above 0" in refused("--layer-decay", 2)
    assert not (tmp_path / "run").exists()
