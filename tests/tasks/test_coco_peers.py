"""COCO's twelve numbers equal pycocotools'. `python -m experiments.parity --only coco` also compares the speed."""

import numpy as np
import pytest

from cnn_jax.tasks import coco
from experiments.peers import coco_cases

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_pycocotools(seed):
    options = {"images": 30, "detections": 25, "objects": 9, "ties": seed % 2 == 0}
    case = coco_cases.random_case(np.random.default_rng(seed), **options)
    ours, theirs = coco.summarize(*case, 4), coco_cases.evaluate(*coco_cases.load(*case, 4))
    np.testing.assert_allclose(coco_cases.twelve(ours), theirs, atol=1e-6, rtol=0)


def test_more_than_a_hundred_detections_of_a_class():
    options = {"images": 3, "detections": 260, "objects": 40, "classes": 1}
    case = coco_cases.random_case(np.random.default_rng(7), **options)
    ours, theirs = coco.summarize(*case, 1), coco_cases.evaluate(*coco_cases.load(*case, 1))
    np.testing.assert_allclose(coco_cases.twelve(ours), theirs, atol=1e-6, rtol=0)
