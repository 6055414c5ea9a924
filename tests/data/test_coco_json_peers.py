"""Masks equal pycocotools': run lengths exactly, polygons but for single pixels at the edge."""

import numpy as np
import pytest

from cnn_jax.data import coco_json

# pycocotools was written for an older NumPy.
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")]
SIZE = (60, 80)


def ours(segmentation):
    return coco_json.mask(segmentation, SIZE, np.zeros(4), where="here")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999, 1.0])
def test_packed_run_lengths(share):
    from pycocotools import mask

    filled = np.random.default_rng(0).random(SIZE) < share
    theirs = mask.encode(np.asfortranarray(filled.astype(np.uint8)))
    text = {"size": list(SIZE), "counts": theirs["counts"].decode()}
    np.testing.assert_array_equal(ours(text), filled)
    assert ours(text).sum() == mask.area(theirs)


@pytest.mark.parametrize("seed", range(20))
def test_polygons(seed):
    from pycocotools import mask

    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(4, 20)))
    points = [40, 30] + np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(8, 29, (len(angles), 1))
    second = [[60.5, 2.5, 75, 4, 70, 15.25]]
    polygons = [points.ravel().tolist(), *second]
    theirs = mask.decode(mask.merge(mask.frPyObjects(polygons, *SIZE))).astype(bool)
    found = ours(polygons)
    edge = np.hypot(*np.diff(points, axis=0, append=points[:1]).T).sum() + 40
    assert (found != theirs).sum() <= 0.15 * edge  # a pixel of the edge in seven
    assert abs(int(found.sum()) - int(theirs.sum())) <= 0.1 * edge
