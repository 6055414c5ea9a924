"""A set in COCO's form, made by hand: grey pictures with red and blue squares."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "blue": (30, 40, 220)}


def make(folder: Path) -> Path:
    """Forty pictures of 60×40 with a square or two each; the JSON file beside them.

    Every other square is a polygon, the others are run lengths; every eighth picture has a crowd of red specks below.
    """
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []

    def add(image, category, box, **more):
        entry = {"id": len(annotations), "image_id": image, "category_id": 7 + category, "bbox": box}
        annotations.append(entry | {"area": box[2] * box[3], "iscrowd": 0} | more)

    for i in range(40):
        picture = rng.integers(90, 140, (40, 60, 3)).astype(np.uint8)
        for left in (4, 34)[: 1 + i % 2]:
            x, y, side = left + int(rng.integers(0, 8)), int(rng.integers(2, 20)), int(rng.integers(10, 16))
            category = int(rng.integers(0, 2))
            picture[y : y + side, x : x + side] = list(COLOURS.values())[category]
            polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
            shape = [polygon] if len(annotations) % 2 else run_lengths(x, y, side, side)
            add(i, category, [x, y, side, side], segmentation=shape)
        if i % 8 == 0:
            picture[36:39:2, 4:56:3] = COLOURS["red"]
            add(i, 0, [4, 36, 52, 3], iscrowd=1, segmentation=run_lengths(4, 36, 52, 3))
        Image.fromarray(picture).save(folder / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 60})
    categories = [{"id": 7 + i, "name": name} for i, name in enumerate(COLOURS)]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def run_lengths(x: int, y: int, width: int, height: int) -> dict:
    """A rectangle in 40 rows of 60, column after column: how many pixels are out, in, out, …"""
    inside = [height, 40 - height] * width
    counts = [40 * x + y, *inside]
    return {"size": [40, 60], "counts": [*counts[:-1], 40 * 60 - sum(counts[:-1])]}
