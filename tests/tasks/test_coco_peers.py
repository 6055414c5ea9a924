"""COCO's twelve numbers equal pycocotools'. `python tests/tasks/test_coco_peers.py` also compares the speed."""

import contextlib
import io
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cnn_jax.tasks import coco

sys.path.insert(0, str(Path(__file__).parent))
from test_coco import random_case

pytestmark = pytest.mark.peers
NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
NAMES += ["ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"]


def reference(found, true, num_classes):
    """pycocotools' twelve numbers, and its seconds without the reading of JSON."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def of(images, **more):
        rows = zip(*np.nonzero(images["objects"]), strict=True)
        for i, j in rows:
            left, top, right, bottom = map(float, images["boxes"][i, j])
            box = [left, top, right - left, bottom - top]
            values = {name: images[key][i, j].item() for name, key in more.items()}
            yield {"image_id": int(i) + 1, "category_id": int(images["label"][i, j]) + 1, "bbox": box, **values}

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        annotations = [{"id": i, **one} for i, one in enumerate(of(true, area="area", iscrowd="crowd"), 1)]
        truth.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(len(true["boxes"]))],
            "categories": [{"id": c + 1} for c in range(num_classes)],
            "annotations": annotations,
        }
        truth.createIndex()
        detections = truth.loadRes(list(of(found, score="scores")))
        begin = time.perf_counter()
        evaluation = COCOeval(truth, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats, time.perf_counter() - begin


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_pycocotools(seed):
    found, true = random_case(np.random.default_rng(seed), images=30, detections=25, objects=9, ties=seed % 2 == 0)
    metrics = coco.summarize(found, true, 4)
    ours = np.nan_to_num([metrics[name] for name in NAMES], nan=-1)
    np.testing.assert_allclose(ours, reference(found, true, 4)[0], atol=1e-6, rtol=0)


def test_more_than_a_hundred_detections_of_a_class():
    found, true = random_case(np.random.default_rng(7), images=3, detections=260, objects=40, classes=1)
    metrics = coco.summarize(found, true, 1)
    ours = np.nan_to_num([metrics[name] for name in NAMES], nan=-1)
    np.testing.assert_allclose(ours, reference(found, true, 1)[0], atol=1e-6, rtol=0)


if __name__ == "__main__":
    case = random_case(np.random.default_rng(0), images=5000, detections=100, objects=15, classes=80)
    for _ in range(3):
        stats, theirs = reference(*case, 80)
        begin = time.perf_counter()
        metrics = coco.summarize(*case, 80)
        ours = time.perf_counter() - begin
        worst = np.abs(np.nan_to_num([metrics[name] for name in NAMES], nan=-1) - stats).max()
        times = f"ours {ours:.1f} s, pycocotools {theirs:.1f} s ({theirs / ours:.1f})"
        print(f"5,000 images × 100 detections: {times}; greatest difference {worst:.1g}")
