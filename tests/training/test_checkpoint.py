"""Checkpoints: what was saved comes back, or it is said that it does not."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from cnn_jax.errors import InputError
from cnn_jax.training import Checkpoints

TREE = {
    "step": np.int32(7),
    "params": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "scale": np.ones(3, ml_dtypes.bfloat16)},
    "opt_state": (np.zeros((), np.float32), None, [np.full((2, 2), -0.0, np.float32)]),
}


def tree_at(step):
    return jax.tree.map(lambda x: (np.asarray(x) + step).astype(x.dtype), TREE)


def save(folder, steps, **options):
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(tree_at(step), step, extra={"seconds": step / 2}, metrics={"accuracy": -abs(step - 2)})
    checkpoints.wait()
    kept = checkpoints.steps()
    checkpoints.close()
    return kept


def restore(folder, template=TREE):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(template)
    finally:
        checkpoints.close()


def assert_is(restored, step):
    assert restored.step == step
    for a, b in zip(jax.tree.leaves(restored.state), jax.tree.leaves(tree_at(step)), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_round_trip(tmp_path):
    save(tmp_path, [1])
    restored = restore(tmp_path)
    assert_is(restored, 1)
    assert restored.extra == {"seconds": 0.5}
    assert restored.damaged == []
    assert jax.tree.structure(restored.state) == jax.tree.structure(TREE)


def test_jax_arrays_too(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(jax.tree.map(jnp.asarray, tree_at(3)), 3)
    checkpoints.wait()
    assert_is(checkpoints.restore(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))), 3)
    checkpoints.close()


def test_keeps_the_last_and_the_best(tmp_path):
    assert save(tmp_path, range(1, 8), keep=2, best="accuracy") == [2, 6, 7]


def test_nothing_to_restore(tmp_path):
    assert restore(tmp_path) is None


def data_files(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in files if path.stat().st_size)


def test_any_damage_is_noticed_or_harmless(tmp_path):
    """A byte flipped in the middle of each file in turn, and each file cut in half: never another state in silence."""
    save(tmp_path, [1, 2])
    noticed = 0
    for path in data_files(tmp_path / "2"):
        content = path.read_bytes()
        middle = len(content) // 2
        for damaged in (content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :], content[:middle]):
            path.write_bytes(damaged)
            restored = restore(tmp_path)
            if restored.damaged:
                assert_is(restored, 1)
                (sentence,) = restored.damaged
                assert sentence.startswith(f"checkpoint 2 in {tmp_path} is damaged (")
                noticed += 1
            else:
                assert_is(restored, 2)
        path.write_bytes(content)
    assert noticed >= 4
    assert_is(restore(tmp_path), 2)


def test_a_flipped_byte_of_any_array_is_noticed(tmp_path):
    """Orbax alone restores changed values."""
    save(tmp_path, [1, 2])
    data = max(data_files(tmp_path / "2" / "arrays"), key=lambda path: path.stat().st_size)
    content = data.read_bytes()
    outcomes = set()
    for place in range(0, len(content), max(1, len(content) // 25)):
        data.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        restored = restore(tmp_path)
        assert_is(restored, 1 if restored.damaged else 2)
        outcomes.add(bool(restored.damaged))
    assert True in outcomes


def test_what_python_says_of_others_is_let_be(tmp_path, monkeypatch):
    """What ends after Orbax has given up is not shown; this takes one hook, however many checkpoints are damaged."""
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    save(tmp_path, [1, 2, 3])
    for step in ("2", "3"):
        for path in data_files(tmp_path / step / "arrays"):
            path.write_bytes(b"")
    assert_is(restore(tmp_path), 1)
    assert sys.unraisablehook.shown == said.append
    late, other = (SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "other"))
    for unraisable in (late, other):
        sys.unraisablehook(unraisable)
    assert said == [other]


def test_all_damaged(tmp_path):
    save(tmp_path, [1, 2])
    for step in ("1", "2"):
        for path in data_files(tmp_path / step / "extra"):
            path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no checkpoint is whole: .*checkpoint 2 .*checkpoint 1 .*another folder"):
        restore(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"params": {"kernel": np.zeros((3, 3), np.float32), "scale": TREE["params"]["scale"]}}, "params/kernel"),
        ({"params": {"kernel": np.zeros((2, 3), np.float16), "scale": TREE["params"]["scale"]}}, "float16"),
        ({"params": {"kernel": TREE["params"]["kernel"]}}, "nothing for params/scale|wants nothing"),
        ({"more": np.zeros(2)}, "it has nothing for more"),
    ],
)
def test_of_another_model_or_dtype(tmp_path, change, sentence):
    save(tmp_path, [1])
    with pytest.raises(InputError, match="is of another model, optimiser or dtype") as error:
        restore(tmp_path, TREE | change)
    assert any(part in str(error.value) for part in sentence.split("|"))
    assert_is(restore(tmp_path), 1)


def test_an_unfinished_save_is_passed_over(tmp_path):
    save(tmp_path, [1])
    (tmp_path / "2.orbax-checkpoint-tmp" / "arrays").mkdir(parents=True)
    assert_is(restore(tmp_path), 1)


def test_no_space(tmp_path):
    """A limit on the size of files stands in for a full disk: the save fails, and the one before stays whole.

    TensorStore names the system's error in words alone; on these `cli` relies to know a full disk.
    """
    save(tmp_path, [1])
    script = f"""
import errno, os, resource, signal, sys
import numpy as np
from cnn_jax.training import Checkpoints
checkpoints = Checkpoints({str(tmp_path)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save({{f"big{{i}}": np.random.default_rng(i).normal(size=10**5) for i in range(10)}}, 2)
    checkpoints.wait()
except ValueError as error:
    sys.exit(3 if os.strerror(errno.EFBIG) in str(error) else str(error))
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 3, done.stderr
    assert "Event loop is closed" not in done.stderr
    assert_is(restore(tmp_path), 1)
