"""What tests of several scripts start from."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image


@pytest.fixture
def undrawn(monkeypatch):
    """For tests of numbers: figures are one pixel, since to draw them takes longer than a tiny run."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: Image.new("L", (1, 1)).save(file, "png"))


@pytest.fixture
def pictures(tmp_path):
    """A folder of ten 12×12 images in each of two classes, dark and light."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            noise = rng.integers(-30, 30, (12, 12)) + level
            Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"
