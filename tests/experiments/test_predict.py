"""predict names what a trained run has learned."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from cnn_jax import data
from cnn_jax.data import images
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


def test_pictures_of_one_name_are_drawn_apart(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b/a.png", "a.jpg", "a-2.png")]
    for i, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4 + i)).save(path)
    drawn = predict.to_draw_on(predict.Config(tmp_path, tuple(paths), out=tmp_path / "out"), {"image_shape": [8, 8, 1]})
    assert [(path, picture.shape) for path, picture, _ in drawn] == [(p, (4 + i, 4, 1)) for i, p in enumerate(paths)]
    names = [file.relative_to(tmp_path / "out").as_posix() for _, _, file in drawn]
    assert names == [f"{name}.found.png" for name in ("a", "a-2", "a-3", "a-2-2")]


def test_a_drawing_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot write .*file/a.found.png: .*\. Choose another --out"):
        predict.save(np.zeros((2, 2, 3), np.uint8), tmp_path / "file" / "a.found.png")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("flag", "summary", "expected"),
    [
        (None, None, 0.3),
        (None, '{"test_ap": 0.5}', 0.3),
        (None, '{"test_score_threshold": 0.45}', 0.45),
        (0.0, "damaged", 0.0),
        (None, "damaged", r"summary\.json is damaged: say with --threshold"),
        (None, "[]", r"summary\.json is damaged: say with --threshold"),
        (None, '{"test_score_threshold": "high"}', r"summary\.json is damaged: say with --threshold"),
    ],
)
def test_how_sure_of_a_box_to_be(tmp_path, flag, summary, expected):
    if summary:
        (tmp_path / "summary.json").write_text(summary)
    config = predict.Config(tmp_path, (), threshold=flag)
    if isinstance(expected, float):
        assert predict.score_threshold(config) == expected
        return
    with pytest.raises(InputError, match=expected):
        predict.score_threshold(config)


@pytest.mark.parametrize("threshold", [float("nan"), -0.1, 1.5])
def test_how_sure_nobody_can_be(tmp_path, threshold):
    with pytest.raises(InputError, match=f"--threshold is {threshold}: it must be from 0 to 1"):
        predict.main(predict.Config(tmp_path, (tmp_path / "a.png",), threshold=threshold))


@pytest.mark.parametrize("depth", ["uint8", "uint16", "int32", "float32"])
def test_levels_are_stretched_whatever_their_depth(tmp_path, depth):
    levels = np.arange(40, 242).astype(depth).reshape(1, 202)  # dark for 16 bits
    Image.fromarray(levels).save(tmp_path / "dark.tif")
    content = (tmp_path / "dark.tif").read_bytes()
    low, high = 40 + 0.1 * 201, 40 + 0.9 * 201
    expected = np.interp(levels, [low, high], [0, 255])
    found = images.stretched(content, (10, 90), "here")
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, expected, atol=0.51)
    Image.fromarray(levels[:, :1]).save(tmp_path / "plain.tif")
    assert images.stretched((tmp_path / "plain.tif").read_bytes(), (10, 90), "here") == 0
    with pytest.raises(InputError, match="here: corrupt image"):
        images.stretched(b"no", (10, 90), "here")
