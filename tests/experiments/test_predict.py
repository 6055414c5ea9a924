"""predict names what a trained run has learned."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from cnn_jax import data
from cnn_jax.errors import InputError
from experiments import classify, predict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "run"
    classify.main(classify.Config(epochs=1, ema=0.9, out=folder))
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Forty test digits as dark blue ink, three times as large, on a yellowish sheet; and their labels."""
    folder, test = tmp_path_factory.mktemp("digits"), data.load("mnist_10k").test
    paths = []
    for i, image in enumerate(test["image"][:40]):
        large = np.asarray(Image.fromarray(image[..., 0]).resize((84, 84))) / 255
        alpha = np.pad(large, ((30, 10), (5, 50)))[..., None]
        pixels = np.array([240, 235, 200]) * (1 - alpha) + np.array([20, 20, 110]) * alpha
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths, test["label"][:40]


def test_names_digits_on_paper(run, digits, capsys):
    paths, labels = digits
    predict.main(predict.Config(run, tuple(paths), top=2))
    output = capsys.readouterr().out
    found = re.findall(r"\.png: in colour.*inverted.*centred as MNIST's digits are\n.*\n.*\n\s*(\d) +(\S+)%\n", output)
    assert len(found) == 40
    right = sum(int(name) == label for (name, _), label in zip(found, labels, strict=True))
    assert right >= 36
    assert all(float(probability) >= 10 for _, probability in found)


def test_a_damaged_checkpoint_is_passed_over(run, digits, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (step,) = (path for path in (copy / "checkpoints").iterdir() if path.name.isdigit())
    shutil.copytree(step, step.with_name("100"))
    for path in (step.with_name("100") / "extra").iterdir():
        path.write_bytes(b"")
    predict.main(predict.Config(copy, (digits[0][0],)))
    assert re.search(r"checkpoint 100 in .* is damaged \(.*\): step \d+ is used instead", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("folder", "pictures", "top", "sentence"),
    [
        ("gone", ("a.png",), 3, "there is no run folder .*gone: make one"),
        ("", ("a.png",), 3, "holds no trained network: give the --out"),
        ("run", (), 3, "no picture given"),
        ("run", ("a.png",), 0, "--top is 0: it must be 1 or more"),
        ("run", ("a.png",), 3, "cannot read image a.png: there is no such file"),
    ],
)
def test_bad_arguments(run, folder, pictures, top, sentence):
    with pytest.raises(InputError, match=sentence):
        predict.main(predict.Config(run.parent / folder, pictures, top=top))
    assert not (run.parent / "gone").exists()
