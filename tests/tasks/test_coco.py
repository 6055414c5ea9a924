"""COCO's metrics by hand; against pycocotools they are in test_coco_peers.py."""

import tracemalloc

import numpy as np
import pytest

from cnn_jax.tasks import coco
from experiments.peers.coco_cases import random_case


def case(predicted, true):
    """predicted: images of (box, score, label); true: images of (box, label, crowd)."""

    def table(images, width):
        most = max(1, *(len(image) for image in images))
        boxes, numbers = np.zeros((len(images), most, 4)), np.zeros((len(images), most))
        labels = np.zeros((len(images), most), int)
        objects = np.zeros((len(images), most), bool)
        for i, image in enumerate(images):
            for j, (box, a, b) in enumerate(image):
                number, label = (a, b) if width == "score" else (b, a)
                boxes[i, j], numbers[i, j], labels[i, j], objects[i, j] = box, number, label, True
        return {"boxes": boxes, "label": labels, "objects": objects, width: numbers}

    found, truth = table(predicted, "score"), table(true, "crowd")
    found["scores"] = found.pop("score")
    truth["crowd"] = truth["crowd"].astype(bool)
    truth["area"] = np.prod(truth["boxes"][..., 2:] - truth["boxes"][..., :2], axis=-1)
    return found, truth


BOX, FAR = (10, 10, 30, 30), (100, 100, 130, 140)


def test_all_found_and_nothing_else():
    metrics = coco.summarize(*case([[(BOX, 0.9, 0), (FAR, 0.8, 1)]], [[(BOX, 0, 0), (FAR, 1, 0)]]), 2)
    for name in ("ap", "ap50", "ap75", "ar1", "ar100", "precision", "recall", "f1", "voc_ap"):
        assert metrics[name] == pytest.approx(1), name
    assert [metrics["ap_small"], metrics["ap_medium"]] == pytest.approx([1, 1])
    assert np.isnan(metrics["ap_large"])
    assert metrics["objects"] == 2
    assert metrics["score_threshold"] == 0.8


def test_one_of_two_and_one_too_many():
    # By falling score: right, wrong. Recall 1/2 with precision 1, so 51 of 101 recalls have precision 1.
    found, true = case([[(BOX, 0.9, 0), ((200, 200, 220, 220), 0.8, 0)]], [[(BOX, 0, 0), (FAR, 0, 0)]])
    metrics = coco.summarize(found, true, 1)
    assert metrics["ap50"] == pytest.approx(51 / 101)
    assert metrics["voc_ap"] == pytest.approx(0.5)
    assert (metrics["precision"], metrics["recall"]) == (1, 0.5)
    assert [metrics["ar1"], metrics["ar100"]] == pytest.approx([0.5, 0.5])


def test_what_is_said_of_a_class_is_of_all_sizes_at_half():
    # 50×50 against 50×26 in it, neither small nor large: IoU 0.52, which passes 0.5 alone.
    box, within = (100, 100, 150, 150), (100, 100, 150, 126)
    metrics = coco.summarize(*case([[(within, 0.9, 1)]], [[(box, 1, 0)]]), 3)
    np.testing.assert_allclose(metrics["ap_per_class"], [np.nan, 0.1, np.nan])
    np.testing.assert_allclose(metrics["ap50_per_class"], [np.nan, 1, np.nan])
    np.testing.assert_allclose(metrics["precision50"][1], 1)
    np.testing.assert_array_equal(metrics["support_per_class"], [0, 1, 0])
    assert [metrics[name] for name in ("precision", "recall", "f1", "score_threshold")] == [1, 1, 1, 0.9]


def test_the_overlap_decides_at_each_threshold():
    # 20×20 against 20×16 in it: IoU 0.8, which passes 0.5 to 0.8, seven of ten.
    metrics = coco.summarize(*case([[((10, 10, 30, 26), 0.9, 0)]], [[(BOX, 0, 0)]]), 1)
    assert metrics["ap"] == pytest.approx(0.7)
    assert metrics["ap75"] == pytest.approx(1)


def test_a_second_box_on_the_same_object_is_wrong():
    metrics = coco.summarize(*case([[(BOX, 0.5, 0), (BOX, 0.9, 0)], []], [[(BOX, 0, 0)], [(BOX, 0, 0)]]), 1)
    assert metrics["recall"] == 0.5
    assert metrics["precision"] == 1  # the best threshold leaves the second out
    assert metrics["ap50"] == pytest.approx(51 / 101)


def test_crowds_are_neither_right_nor_wrong():
    found, true = case([[(BOX, 0.9, 0), (FAR, 0.8, 0), (FAR, 0.7, 0)]], [[(BOX, 0, 0), (FAR, 0, 1)]])
    metrics = coco.summarize(found, true, 1)
    assert [metrics[name] for name in ("ap", "precision", "voc_ap")] == pytest.approx([1, 1, 1])
    assert metrics["objects"] == 1


def test_voc_looks_at_the_object_that_is_overlapped_most_alone():
    """Two objects side by side, and two boxes nearer to the first: COCO gives the second box the second object."""
    near, beside = (0, 0, 10, 10), (0, 2, 10, 12)
    found, true = case([[(near, 0.9, 0), ((0, 0.5, 10, 10.5), 0.8, 0)]], [[(near, 0, 0), (beside, 0, 0)]])
    metrics = coco.summarize(found, true, 1)
    assert metrics["ap50"] == pytest.approx(1)
    assert metrics["voc_ap"] == pytest.approx(0.5)  # the second box meets a taken object: wrong


def test_voc_takes_the_first_of_equal_overlaps_and_leaves_difficult_ones_out():
    # Twice the same box, and a crowd, which the third detection meets. Of the two objects one is never met.
    boxes = [(BOX, 0, 0), (BOX, 0, 0), (FAR, 0, 1)]
    found, true = case([[(BOX, 0.9, 0), (FAR, 0.8, 0), (BOX, 0.7, 0)]], [boxes])
    assert coco.summarize(found, true, 1)["voc_ap"] == pytest.approx(0.5)
    # COCO counts the share of a small box that lies in a crowd, VOC the plain overlap.
    found, true = case([[((102, 102, 112, 112), 0.9, 0), (BOX, 0.8, 0)]], [[(BOX, 0, 0), (FAR, 0, 1)]])
    metrics = coco.summarize(found, true, 1)
    assert [metrics["ap50"], metrics["voc_ap"]] == pytest.approx([1, 0.5])


def test_nothing_there_and_nothing_found():
    empty = coco.summarize(*case([[], []], [[], []]), 3)
    assert np.isnan(empty["ap"])
    missed = coco.summarize(*case([[]], [[(BOX, 0, 0)]]), 1)
    assert missed["ap"] == missed["f1"] == 0


def test_padding_and_the_order_of_images_change_nothing():
    found, true = random_case(np.random.default_rng(0))
    metrics = coco.summarize(found, true, 4)
    pad = lambda x: np.concatenate([x, np.ones_like(x[:, :3])], axis=1)  # noqa: E731
    padded = [{name: pad(x) for name, x in of.items()} for of in (found, true)]
    for of in padded:
        of["objects"][:, -3:] = False
    turned = [{name: x[::-1] for name, x in of.items()} for of in (found, true)]
    for other in (padded, turned):
        again = coco.summarize(*other, 4)
        for name in metrics:
            np.testing.assert_allclose(again[name], metrics[name], atol=1e-12, err_msg=name)


def test_padding_costs_no_memory():
    """One crowded picture makes the padding of all."""
    found, true = random_case(np.random.default_rng(0), images=60, detections=60)
    peaks = []
    for places in (0, 2000):
        wide = {
            name: np.concatenate([x, np.zeros_like(x, shape=(60, places, *x.shape[2:]))], 1) for name, x in true.items()
        }
        tracemalloc.start()
        coco.summarize(found, wide, 4)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]
