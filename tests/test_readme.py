"""The Python code of README runs, block after block, and does what README says."""

import re
from pathlib import Path

import jax
import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    names, printed = {}, []
    names["print"] = printed.append
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    accuracy, stripes, error, losses, miou, weights, shapes, of_maps = printed
    assert accuracy > 0.85
    assert stripes == 1
    assert error < 1.5  # by guessing the middle 2.5
    assert len(set(losses.tolist())) == 3
    assert (losses < 2.3).all()  # by guessing log 10
    assert 0 < miou < 1
    assert "logits/bias, logits/kernel drawn anew" in weights
    assert (names["logits"].argmax(1) == names["digits"].test["label"][:4]).all()
    assert of_maps == (4, 28, 28, 1)
    assert shapes["conv1"] == (4, 28, 28, 32)
    assert shapes["conv2"] == (4, 14, 14, 64)
    # "At most five lines": of each change to what `fit` is given, the call itself not counted.
    changes = [
        [line for line in block.splitlines() if line and "import" not in line]
        for block in blocks[1:]
        if "training.fit(" in block and "tasks." not in block.replace("tasks.classify(2)", "")
    ]
    assert max(map(len, changes)) <= 6
    assert all(jax.numpy.isfinite(leaf).all() for leaf in jax.tree.leaves(names["fit"].state.params))
