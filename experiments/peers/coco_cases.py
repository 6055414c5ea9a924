"""Random detections and truth in the form of `cnn_jax.tasks.coco`, and pycocotools' view of them."""

import contextlib
import io

import numpy as np

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
