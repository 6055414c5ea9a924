"""Random detections and truth in the form of `cnn_jax.tasks.coco`, and pycocotools' view of them."""

import contextlib
import io
import time

import numpy as np

from cnn_jax.reporting import print_table
from cnn_jax.tasks import coco

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NAMES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")


def random_case(
    rng: np.random.Generator,
    *,
    images: int = 12,
    detections: int = 15,
    objects: int = 6,
    classes: int = 4,
    ties: bool = False,
) -> tuple[dict, dict]:
    """(predicted, true): detections near objects, with crowds, images without any, and perhaps equal scores."""
    corner, size = rng.uniform(0, 150, (images, objects, 2)), rng.uniform(4, 120, (images, objects, 2))
    true = {"boxes": np.round(np.concatenate([corner, corner + size], -1))}
    true |= {"label": rng.integers(0, classes, (images, objects)), "objects": rng.random((images, objects)) < 0.6}
    true |= {"crowd": rng.random((images, objects)) < 0.15}
    true["objects"][0] = False
    true["area"] = np.prod(size, -1) * rng.uniform(0.4, 1, size.shape[:2])
    source = rng.integers(0, objects, (images, detections))
    boxes = np.take_along_axis(true["boxes"], source[..., None], 1) + np.round(rng.normal(0, 4, (*source.shape, 4)))
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    label = np.take_along_axis(true["label"], source, 1)
    label = np.where(rng.random(source.shape) < 0.8, label, rng.integers(0, classes, source.shape))
    scores = rng.random(source.shape)
    scores = np.round(scores, 1) if ties else scores
    found = {"boxes": boxes, "label": label, "scores": scores, "objects": rng.random(source.shape) < 0.8}
    found["objects"][1] = False
    return found, true


def load(predicted: dict, true: dict, num_classes: int) -> tuple:
    """(truth, detections) as pycocotools has them once it has read its files."""
    from pycocotools.coco import COCO

    def of(images, **more):
        for i, j in zip(*np.nonzero(images["objects"]), strict=True):
            left, top, right, bottom = map(float, images["boxes"][i, j])
            box = [left, top, right - left, bottom - top]
            values = {name: images[key][i, j].item() for name, key in more.items()}
            yield {"image_id": int(i) + 1, "category_id": int(images["label"][i, j]) + 1, "bbox": box, **values}

    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i + 1} for i in range(len(true["boxes"]))],
        "categories": [{"id": c + 1} for c in range(num_classes)],
        "annotations": [{"id": i, **one} for i, one in enumerate(of(true, area="area", iscrowd="crowd"), 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        return truth, truth.loadRes(list(of(predicted, score="scores")))


def evaluate(truth, detections) -> np.ndarray:
    """pycocotools' twelve numbers, in the order of `NAMES`, −1 for a mean over none."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def twelve(metrics: dict) -> np.ndarray:
    """Ours in the same form."""
    return np.nan_to_num([metrics[name] for name in NAMES], nan=-1)


def compare(tiny: bool) -> dict:
    """COCO's twelve numbers in random cases, with crowds and images without objects or detections; and the time."""
    case = {"images": 40, "detections": 25, "objects": 9, "classes": 4}
    many = {"images": 200 if tiny else 5000, "detections": 100, "objects": 15, "classes": 80}
    cases = [["distinct scores", case], ["equal scores", case | {"ties": True}]] * (1 if tiny else 3)
    cases += [["more than 100 of a class", {"images": 3, "detections": 260, "objects": 40, "classes": 1}]]
    cases += [[f"{many['images']:,} × 100 detections of 80 classes", many]] * 3
    rows = []
    for seed, (what, options) in enumerate(cases):
        predicted, true = random_case(np.random.default_rng(seed), **options)
        loaded = load(predicted, true, options["classes"])  # before the clock starts
        begin = time.perf_counter()
        ours = twelve(coco.summarize(predicted, true, options["classes"]))
        middle = time.perf_counter()
        difference = np.abs(ours - evaluate(*loaded)).max()
        rows.append([what, difference, middle - begin, time.perf_counter() - middle])
    worst = {"difference": np.max([row[1] for row in rows]), "bound": 1e-6}
    ours, theirs = np.median([row[2:] for row in rows[-3:]], axis=0)
    speed = {"ours_s": ours, "pycocotools_s": theirs, "ratio": theirs / ours}
    rows = [[what, f"{worst:.1g}", f"{a:.2f} s", f"{b:.2f} s", f"{b / a:.1f}"] for what, worst, a, b in rows]
    print_table("COCO's twelve numbers and pycocotools'", ["case", "difference", "ours", "pycocotools", "ratio"], rows)
    return {"coco_metrics": worst, "coco_speed": speed}
