"""COCO's twelve numbers and VOC's average precision, exactly as their authors' programs count them, but all at once.

Boxes are matched for all images, thresholds and areas in one go of array operations, a rank of the scores at a time.
"""

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"": (0, 1e10), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, 1e10)}
MAX_DETECTIONS = (1, 10, 100)


def summarize(predicted: dict, true: dict, num_classes: int) -> dict:
    """The metrics of detections against the truth, over a whole set, in float64.

    Args:
        predicted: `boxes` [N,D,4], `scores` [N,D], `label` [N,D], `objects` bool[N,D]: the detections of each image, in
            any order; of equal scores in an image the first counts first.
        true: `boxes` [N,M,4], `label` [N,M], `objects` bool[N,M], `crowd` bool[N,M], `area` [N,M].

    Returns:
        count, objects         images; true objects that are not crowds
        ap                     mean over classes and over the IoU thresholds 0.5, 0.55, … 0.95 of the average precision:
                               the mean of the precision at 101 recalls, precision made to fall with recall
        ap50, ap75             at one threshold
        ap_small, _medium, _large      of objects of area below 32², to 96², above
        ar1, ar10, ar100       mean over classes and thresholds of the recall with so many detections an image and class
        ar_small, _medium, _large      of objects of that size, with 100 detections
        ap_per_class, ap50_per_class   [C]
        precision50            [C,101], the precision at each of `RECALLS`, at the threshold 0.5
        support_per_class      i64[C]
        voc_ap                 mean over classes of VOC's average precision (2010 on: the area under the curve) at 0.5;
                               crowds take the place of VOC's "difficult" objects
        precision, recall, f1  of the best score threshold, all classes together, at an IoU of 0.5
        score_threshold        that threshold

    A class without objects (of that size) is left out of the means; a mean over none is nan.
    """
    rows, columns = np.nonzero(predicted["objects"])
    found = {name: np.asarray(predicted[name])[rows, columns] for name in ("boxes", "scores", "label")}
    found["image"], found["boxes"] = rows, found["boxes"].astype(np.float64)
    # By falling score; of equal ones by image, and in an image in the order in which they came.
    order = np.argsort(-found["scores"], kind="stable")
    found = {name: values[order] for name, values in found.items()}
    found["rank"] = _ranks(found["image"] * num_classes + found["label"])
    keep = found["rank"] < max(MAX_DETECTIONS)
    found = {name: values[keep] for name, values in found.items()}

    true = {name: np.asarray(values) for name, values in true.items()}
    objects, crowd = true["objects"], true["crowd"] & true["objects"]
    sizes = np.array(list(AREAS.values()))
    # An object that does not count: a crowd, or of another size. bool[N,M,areas]
    ignored = crowd[..., None] | (true["area"][..., None] < sizes[:, 0]) | (true["area"][..., None] > sizes[:, 1])
    matched, ignored_match = _match(found, true, ignored)
    box_area = np.prod(found["boxes"][:, 2:] - found["boxes"][:, :2], axis=1)[:, None]
    outside = (box_area < sizes[:, 0]) | (box_area > sizes[:, 1])
    skipped = ignored_match | (~matched & outside[:, None, :])

    counted = objects[..., None] & ~ignored
    support = np.stack([counted[(true["label"] == c) & objects].sum(0) for c in range(num_classes)])  # [C,areas]
    ap = np.full((len(THRESHOLDS), num_classes, len(AREAS)), np.nan)
    recall = np.full((len(MAX_DETECTIONS), *ap.shape), np.nan)
    precision50 = np.full((num_classes, len(RECALLS)), np.nan)
    for c in range(num_classes):
        mine = found["label"] == c
        for a in np.flatnonzero(support[c]):
            for m, most in enumerate(MAX_DETECTIONS):
                if a and most != MAX_DETECTIONS[-1]:
                    continue
                use = mine & (found["rank"] < most)
                hit, skip = matched[use, :, a].T, skipped[use, :, a].T
                right, wrong = np.cumsum(hit & ~skip, 1, np.float64), np.cumsum(~hit & ~skip, 1, np.float64)
                recall[m, :, c, a] = right[:, -1] / support[c, a] if hit.shape[1] else 0
                if most != MAX_DETECTIONS[-1]:
                    continue
                for t in range(len(THRESHOLDS)):
                    curve = _precisions(right[t], wrong[t], support[c, a])
                    ap[t, c, a] = curve.mean()
                    if not t and not a:
                        precision50[c] = curve
    metrics = {"count": len(objects), "objects": int((objects & ~crowd).sum())}
    metrics |= {"ap": _mean(ap[..., 0]), "ap50": _mean(ap[0, :, 0]), "ap75": _mean(ap[5, :, 0])}
    metrics |= {f"ap{name}": _mean(ap[..., a]) for a, name in enumerate(AREAS) if a}
    metrics |= {f"ar{most}": _mean(recall[m, ..., 0]) for m, most in enumerate(MAX_DETECTIONS)}
    metrics |= {f"ar{name}": _mean(recall[-1, ..., a]) for a, name in enumerate(AREAS) if a}
    metrics |= {"ap_per_class": ap[..., 0].mean(0), "ap50_per_class": ap[0, :, 0], "precision50": precision50}
    metrics |= {"support_per_class": support[:, 0]}
    metrics["voc_ap"] = _mean(voc_ap_per_class(found, true, num_classes))
    return metrics | _best_threshold(found["scores"], matched[:, 0, 0], skipped[:, 0, 0], support[:, 0].sum())


def iou(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray | bool = False) -> np.ndarray:
    """float64[...] of [...,4] and [...,4], by broadcasting. Of a crowd: the share of the box that lies in it."""
    low, high = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    own, other = (np.prod(x[..., 2:] - x[..., :2], axis=-1) for x in (boxes, others))
    union = np.where(crowd, own, own + other - shared)
    return np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)


def _match(found: dict, true: dict, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which detections meet an object, at each threshold and for each size: (bool[K,T,areas], whether it is ignored).

    Each detection, by falling score, takes the object of its class that it overlaps most, of those still free (a crowd
    stays free); one that counts before one that does not; of equal overlaps the last.
    """
    count, thresholds, areas = len(found["label"]), len(THRESHOLDS), ignored.shape[-1]
    matched, useless = np.zeros((2, count, thresholds, areas), bool)
    if not count or not true["boxes"].shape[1]:
        return matched, useless
    truth = true["boxes"].astype(np.float64)
    same = true["objects"][found["image"]] & (true["label"][found["image"]] == found["label"][:, None])
    overlap = iou(found["boxes"][:, None], truth[found["image"]], true["crowd"][found["image"]])
    overlap = np.where(same, overlap, 0)
    least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None, None]
    rows = np.flatnonzero((overlap >= least.min()).any(1))  # the others meet nothing at any threshold
    free = np.ones((len(truth), thresholds, areas, truth.shape[1]), bool)
    for rank in range(int(found["rank"][rows].max(initial=-1)) + 1):
        # One detection of each image and class: of different classes they do not compete for objects.
        now = rows[found["rank"][rows] == rank]
        image = found["image"][now]
        of_image = np.moveaxis(ignored[image], 1, 2)[:, None]  # [k,1,areas,M]
        value = overlap[now][:, None, None]
        open_ = free[image] | true["crowd"][image][:, None, None]
        value = np.where(open_ & (value >= least), value, -1) + np.zeros((1, 1, areas, 1))
        counts = np.where(of_image, -1, value)
        value = np.where((counts >= 0).any(-1, keepdims=True), counts, value)
        best = value.shape[-1] - 1 - np.argmax(value[..., ::-1], axis=-1)
        hit = np.take_along_axis(value, best[..., None], -1)[..., 0] >= 0
        matched[now] = hit
        useless[now] = hit & np.take_along_axis(np.broadcast_to(of_image, value.shape), best[..., None], -1)[..., 0]
        k, t, a = np.nonzero(hit)
        free[image[k], t, a, best[k, t, a]] = False
    return matched, useless


def _ranks(groups: np.ndarray) -> np.ndarray:
    """How many rows before it are of the same group: i64[K]."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, int)
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))
    return ranks


def _precisions(right: np.ndarray, wrong: np.ndarray, support: int) -> np.ndarray:
    """The precision at each of `RECALLS`: the best that this recall or more allows; 0 where none reaches it."""
    precision = right / (right + wrong + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    where = np.searchsorted(right / support, RECALLS, side="left")
    return np.append(precision, 0)[where]


def voc_ap_per_class(found: dict, true: dict, num_classes: int) -> np.ndarray:
    """VOC's average precision at an IoU of 0.5: [C]. Unlike COCO's, a detection looks at the object that it overlaps
    most only, be it taken or not; `found` holds detections by falling score."""
    ap = np.full(num_classes, np.nan)
    truth = true["boxes"].astype(np.float64)
    for c in range(num_classes):
        there = true["objects"] & (true["label"] == c)
        support = int((there & ~true["crowd"]).sum())
        mine = np.flatnonzero(found["label"] == c)
        if not support:
            continue
        right, counts, taken = np.zeros(len(mine)), np.ones(len(mine), bool), set()
        if len(mine) and truth.shape[1]:
            image = found["image"][mine]
            overlap = np.where(there[image], iou(found["boxes"][mine][:, None], truth[image]), -1)
            best = overlap.argmax(1)
            for i in np.flatnonzero(overlap[np.arange(len(mine)), best] >= 0.5):
                target = (image[i], best[i])
                if true["crowd"][target]:
                    counts[i] = False
                elif target not in taken:
                    taken.add(target)
                    right[i] = 1
        right = np.cumsum(right[counts])
        precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
        ap[c] = float((np.diff(np.r_[0, right / support]) * precision).sum())
    return ap


def _best_threshold(scores: np.ndarray, matched: np.ndarray, skipped: np.ndarray, support: int) -> dict:
    """Precision, recall and F1 where F1 is greatest, going down the scores (which fall), and the score there."""
    scores, hit = scores[~skipped], matched[~skipped]
    right = np.cumsum(hit)
    f1 = 2 * right / np.maximum(np.arange(1, len(hit) + 1) + support, 1)
    if not len(hit) or not support:
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0, "score_threshold": float("nan")}
    # A threshold takes all of equal scores or none.
    last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])
    i = last[np.argmax(f1[last])]
    return {
        "precision": float(right[i] / (i + 1)),
        "recall": float(right[i] / support),
        "f1": float(f1[i]),
        "score_threshold": float(scores[i]),
    }


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
