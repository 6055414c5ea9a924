"""COCO's twelve numbers and VOC's average precision, exactly as their authors' programs count them, but all at once.

Boxes are matched for all images, thresholds and areas in one go of array operations, a rank of the scores at a time.
Only pairs of one image and class that overlap are looked at, so neither padding nor crowded images cost anything.
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
    predicted, true = ({name: np.asarray(values) for name, values in of.items()} for of in (predicted, true))
    found, truth = (_flat(of, num_classes) for of in (predicted, true))
    # By falling score; of equal ones by image, and in an image in the order in which they came.
    found = _rows(found, np.argsort(-found["scores"], kind="stable"))
    found["rank"] = _ranks(found["group"])
    found = _rows(found, found["rank"] < max(MAX_DETECTIONS))
    truth = _rows(truth, np.argsort(truth["group"], kind="stable"))

    sizes = np.array(list(AREAS.values()))
    area = truth["area"][:, None]
    # An object that does not count: a crowd, or of another size. bool[J,areas]
    ignored = truth["crowd"][:, None] | (area < sizes[:, 0]) | (area > sizes[:, 1])
    matched, ignored_match = _match(found, truth, ignored)
    box_area = np.prod(found["boxes"][:, 2:] - found["boxes"][:, :2], axis=1)[:, None]
    outside = (box_area < sizes[:, 0]) | (box_area > sizes[:, 1])
    skipped = ignored_match | (~matched & outside[:, None, :])

    support = np.stack([(~ignored[truth["label"] == c]).sum(0) for c in range(num_classes)])  # [C,areas]
    recall = np.full((len(MAX_DETECTIONS), len(THRESHOLDS), num_classes, len(AREAS)), np.nan)
    precision = np.full((len(THRESHOLDS), num_classes, len(AREAS), len(RECALLS)), np.nan)
    for c in range(num_classes):
        mine = found["label"] == c
        rank, hit, miss = found["rank"][mine], (matched & ~skipped)[mine], ~(matched | skipped)[mine]
        for a in np.flatnonzero(support[c]):
            for m, most in enumerate(MAX_DETECTIONS):
                recall[m, :, c, a] = hit[rank < most, :, a].sum(0) / support[c, a]
            for t in range(len(THRESHOLDS)):
                precision[t, c, a] = _precisions(hit[:, t, a], miss[:, t, a], support[c, a])
    ap = precision.mean(-1)
    metrics = {"count": len(true["objects"]), "objects": int(support[:, 0].sum())}
    metrics |= {"ap": _mean(ap[..., 0]), "ap50": _mean(ap[0, :, 0]), "ap75": _mean(ap[5, :, 0])}
    metrics |= {f"ap{name}": _mean(ap[..., a]) for a, name in enumerate(AREAS) if a}
    metrics |= {f"ar{most}": _mean(recall[m, ..., 0]) for m, most in enumerate(MAX_DETECTIONS)}
    metrics |= {f"ar{name}": _mean(recall[-1, ..., a]) for a, name in enumerate(AREAS) if a}
    metrics |= {"ap_per_class": ap[..., 0].mean(0), "ap50_per_class": ap[0, :, 0], "precision50": precision[0, :, 0]}
    metrics |= {"support_per_class": support[:, 0]}
    metrics["voc_ap"] = _mean(voc_ap_per_class(found, truth, num_classes))
    return metrics | _best_threshold(found["scores"], matched[:, 0, 0], skipped[:, 0, 0], support[:, 0].sum())


def iou(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray | bool = False) -> np.ndarray:
    """float64[...] of [...,4] and [...,4], by broadcasting. Of a crowd: the share of the box that lies in it."""
    low, high = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    own, other = (np.prod(x[..., 2:] - x[..., :2], axis=-1) for x in (boxes, others))
    union = np.where(crowd, own, own + other - shared)
    return np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)


def _flat(images: dict, num_classes: int) -> dict:
    """A row for each detection or object that is there, image by image; `group` says of which image and class."""
    there = images["objects"]
    rows = {name: values[there] for name, values in images.items() if name != "objects"}
    rows["boxes"] = rows["boxes"].astype(np.float64)
    return rows | {"group": np.nonzero(there)[0] * num_classes + rows["label"]}


def _rows(of: dict, rows: np.ndarray) -> dict:
    return {name: values[rows] for name, values in of.items()}


def _near(found: dict, truth: dict, crowd: np.ndarray | bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of one image and class that overlap by the least threshold: (detection, object, overlap), each [P].

    By detection, then by rising overlap, then by object. The rows of `truth` must be in the order of their groups.
    """
    first, last = (np.searchsorted(truth["group"], found["group"], side) for side in ("left", "right"))
    count = last - first
    detection = np.repeat(np.arange(len(count)), count)
    target = np.arange(len(detection)) + np.repeat(first - (np.cumsum(count) - count), count)
    crowd = np.broadcast_to(crowd, len(truth["group"]))[target]
    overlap = iou(found["boxes"][detection], truth["boxes"][target], crowd)
    near = np.flatnonzero(overlap >= THRESHOLDS[0])
    near = near[np.lexsort((target[near], overlap[near], detection[near]))]
    return detection[near], target[near], overlap[near]


def _match(found: dict, truth: dict, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which detections meet an object, at each threshold and for each size: (bool[K,T,areas], whether it is ignored).

    Each detection, by falling score, takes the object of its class that it overlaps most, of those still free (a crowd
    stays free); one that counts before one that does not; of equal overlaps the last.
    """
    shape = (len(THRESHOLDS), len(AREAS))
    matched, useless = np.zeros((2, len(found["label"]), *shape), bool)
    free = np.ones((len(truth["label"]), *shape), bool)
    detection, target, overlap = _near(found, truth, truth["crowd"])
    least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    # One detection of each image and class in turn: of different ones they do not compete for objects.
    competing, of_pair = np.unique(detection, return_inverse=True)
    turn = _ranks(found["group"][competing])[of_pair]
    for now in range(turn.max(initial=-1) + 1):
        rows = np.flatnonzero(turn == now)
        one, other = detection[rows], target[rows]
        starts = np.flatnonzero(np.r_[True, one[1:] != one[:-1]])
        open_ = (overlap[rows][:, None, None] >= least) & (free[other] | truth["crowd"][other][:, None, None])
        # The pairs of a detection rise, so the best is the last that is open; those that count come after the others.
        place = 1 + np.arange(len(rows))[:, None] + len(rows) * ~ignored[other]
        best = np.maximum.reduceat(np.where(open_, place[:, None], 0), starts)
        matched[one[starts]], useless[one[starts]] = best > 0, (best > 0) & (best <= len(rows))
        k, t, a = np.nonzero(best)
        free[other[(best[k, t, a] - 1) % len(rows)], t, a] = False
    return matched, useless


def _ranks(groups: np.ndarray) -> np.ndarray:
    """How many rows before it are of the same group: i64[K]."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, int)
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))
    return ranks


def _precisions(hit: np.ndarray, miss: np.ndarray, support: int) -> np.ndarray:
    """The precision at each of `RECALLS`, down the scores: the best that this recall or more allows; 0 beyond."""
    right, wrong = np.cumsum(hit, dtype=np.float64), np.cumsum(miss, dtype=np.float64)
    precision = right / (right + wrong + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    where = np.searchsorted(right / support, RECALLS, side="left")
    return np.append(precision, 0)[where]


def voc_ap_per_class(found: dict, truth: dict, num_classes: int) -> np.ndarray:
    """VOC's average precision at an IoU of 0.5: [C]. Unlike COCO's, a detection looks at the object that it overlaps
    most only, be it taken or not (of equal overlaps the first); `found` holds detections by falling score."""
    detection, target, overlap = _near(found, truth, False)
    order = np.lexsort((target, -overlap, detection))
    detection, best = np.unique(detection[order], return_index=True)
    target = target[order][best]
    counts, right = np.ones(len(found["label"]), bool), np.zeros(len(found["label"]), bool)
    counts[detection[truth["crowd"][target]]] = False
    right[detection[np.unique(target, return_index=True)[1]]] = True  # the first to meet it
    ap = np.full(num_classes, np.nan)
    for c in range(num_classes):
        support = int(((truth["label"] == c) & ~truth["crowd"]).sum())
        if support:
            hits = np.cumsum(right[counts & (found["label"] == c)])
            precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
            ap[c] = float((np.diff(np.r_[0, hits / support]) * precision).sum())
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
