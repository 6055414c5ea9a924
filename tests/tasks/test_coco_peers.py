"""COCO's twelve numbers equal pycocotools'. `python -m experiments.parity --only coco` also compares the speed."""

import numpy as np
import pytest

from cnn_jax.tasks import coco
from experiments.peers import coco_cases

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_pycocotools(seed):
    options = {"images": 30, "detections": 25, "objects": 9, "ties": seed % 2 == 0}
    found, true = coco_cases.random_case(np.random.default_rng(seed), **options)
    if seed > 3:  # many equal boxes and overlaps, and padding between the objects
        for of in (found, true):
            low = np.round(of["boxes"][..., :2] / 40) * 40
            of["boxes"] = np.concatenate([low, low + np.array([40, 60])[of["label"] % 2, None]], -1)
        true = {name: np.repeat(values, 30, axis=1) for name, values in true.items()}
        true["objects"] &= np.arange(true["objects"].shape[1]) % 30 == 7
    ours, theirs = coco.summarize(found, true, 4), coco_cases.evaluate(*coco_cases.load(found, true, 4))
    np.testing.assert_allclose(coco_cases.twelve(ours), theirs, atol=1e-12, rtol=0)


def test_more_than_a_hundred_detections_of_a_class():
    options = {"images": 3, "detections": 260, "objects": 40, "classes": 1}
    case = coco_cases.random_case(np.random.default_rng(7), **options)
    ours, theirs = coco.summarize(*case, 1), coco_cases.evaluate(*coco_cases.load(*case, 1))
    np.testing.assert_allclose(coco_cases.twelve(ours), theirs, atol=1e-12, rtol=0)
