"""The comparison with other libraries, in little; and what it says without them, and of a difference."""

import json
import sys

import numpy as np
import pytest

from cnn_jax import cli
from cnn_jax.tasks import coco
from experiments import parity


def test_without_the_peers_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("experiments.peers.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["parity"])
    with pytest.raises(SystemExit) as end:
        cli.main(parity.main, parity.Config, parity.__doc__)
    said = capsys.readouterr().err
    assert end.value.code == 2
    missing = "torch, torchvision, timm, captum, pycocotools"
    assert said.startswith(f"error: {missing} cannot be found: pip install 'cnn_jax[peers]'")
    assert "pip install --no-deps torchvision==0.28.0" in said


def test_differences():
    assert parity.compared([np.ones(2)], [np.array([1, 4])], 0.5) == {"difference": 3, "scale": 4, "bound": 2}
    assert parity.compared([np.ones(2)], [np.ones(3)], 0.5)["difference"] == np.inf
    assert parity.compared([np.zeros(0)], [np.zeros(0)], 0.5)["difference"] == 0


@pytest.mark.peers
@pytest.mark.slow
def test_everything_within_bounds(capsys):
    parity.main(parity.Config(tiny=True))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.pop("machine")
    assert found.pop("coco_speed")["ratio"] > 1
    assert all(numbers["difference"] <= numbers["bound"] for numbers in found.values())
    for name in ("resnet18_logits", "resnet50_loss_in_training", "fcos_resnet50_fpn_distances", "nms_0.5"):
        assert found[name]["scale"] > 0
    assert {"fcos_resnet50_fpn_detected_boxes", "deeplabv3_resnet50_aux", "coco_metrics"} <= set(found)


@pytest.mark.peers
def test_a_difference_ends_it_with_an_error(monkeypatch, capsys):
    right = coco.summarize
    monkeypatch.setattr(coco, "summarize", lambda *case: right(*case) | {"ar1": 0.123})
    with pytest.raises(SystemExit, match="above their bounds: coco_metrics"):
        parity.main(parity.Config(only="coco", tiny=True))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["coco_metrics"]["difference"] > 0.01
