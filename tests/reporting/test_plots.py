import subprocess
import sys

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_rgb

from cnn_jax.reporting import plots
from cnn_jax.reporting.style import BLUE, DPI, ORANGE, power_of_ten, short_number

DIGITS = [str(i) for i in range(10)]


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def page(figure) -> np.ndarray:
    """The pixels of a figure of pictures."""
    (image,) = figure.axes[0].images
    return np.asarray(image.get_array())


def test_import_is_light():
    heavy = "{'matplotlib', 'rich', 'PIL', 'jax', 'tensorboardX'}"
    code = f"import sys, cnn_jax.reporting; print(sorted({heavy} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_image_grid_holds_the_pixels_and_the_titles():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.full((1, 4, 4, 1), 40, np.uint8)
    figure = plots.image_grid(images, list("abcdef"), columns=3, title="Letters")
    assert texts(figure.axes[0]) == ["Letters", *"abcdef"]
    pixels = page(figure)
    tile = (pixels == 200).all(axis=-1)
    ys, xs = np.nonzero(tile)
    # The sixth picture is a solid square, in the second row, at the right.
    assert np.ptp(ys) == np.ptp(xs)
    assert tile.sum() == (np.ptp(xs) + 1) ** 2
    assert ys.min() > pixels.shape[0] / 2
    assert xs.min() > pixels.shape[1] / 2
    as_floats = plots.image_grid(images[..., 0] / np.float32(255), list("abcdef"), columns=3, title="Letters")
    np.testing.assert_array_equal(page(as_floats), pixels)


def test_image_grid_colours_and_errors():
    red = np.zeros((1, 2, 2, 3), np.uint8)
    red[..., 0] = 255
    assert (page(plots.image_grid(red)) == [255, 0, 0]).all(axis=-1).sum() > 10_000
    with pytest.raises(ValueError, match=r"images: .*\[1, 2, 2, 4\]"):
        plots.image_grid(np.zeros((1, 2, 2, 4)))
    with pytest.raises(ValueError, match="titles: expected one for each of 1 images, got 2"):
        plots.image_grid(red, ["a", "b"])


def test_mistakes_come_worst_first():
    images = np.zeros((5, 8, 8, 1), np.uint8)
    figure = plots.mistakes(images, [0, 1, 2, 3, 4], [0, 7, 2, 8, 9], [0.99, 0.6, 0.7, 0.9, 0.8], DIGITS, count=2)
    title, note, *shown = texts(figure.axes[0])
    assert (title, shown) == ("Worst mistakes", ["3 → 8  90%", "4 → 9  80%"])
    assert "2 of 3 mistakes among 5" in note
    rows = []
    plots.mistakes(lambda r: rows.append(r) or images[r], [0, 1, 2], [0, 2, 1], [0.9, 0.5, 0.6], DIGITS)
    assert rows[0].tolist() == [2, 1]
    long = plots.mistakes(images, [0] * 5, [1, 0, 0, 0, 0], [0.5] * 5, ["cat", "<b>$dog$</b>"])
    assert texts(long.axes[0])[-3:] == ["50%", "→ <b>$dog$</b>", "cat"]
    assert "There are none." in texts(plots.mistakes(images, [1] * 5, [1] * 5, [1.0] * 5, DIGITS).axes[0])


def test_filters_are_symmetric_about_zero():
    kernel = np.zeros((2, 2, 1, 3), np.float32)
    kernel[..., 1], kernel[..., 2] = 0.5, -0.25
    figure = plots.filters(kernel, title="conv1")
    shown = texts(figure.axes[0])
    assert shown[:2] == ["conv1", "2 \N{MULTIPLICATION SIGN} 2, 3 filters; blue is negative, red positive"]
    assert [t for t in shown if t in ("1", "2", "3")] == ["1", "2", "3"]
    assert shown[-3:] == ["\N{MINUS SIGN}0.5", "0", "+0.5"]
    # A point within each picture, below the middle of its number.
    below = {t.get_text(): t.get_position() for t in figure.axes[0].texts[2:5]}
    zero, positive, negative = (page(figure)[int(y) + 60, int(x)].astype(int) for x, y in below.values())
    assert np.ptp(zero) < 4  # grey, as near to white as the map has it
    assert positive[0] > positive[2]
    assert negative[2] > negative[0]


def test_filters_of_many_channels():
    assert "one colour for each input channel" in texts(plots.filters(np.ones((3, 3, 3, 2))).axes[0])[1]
    assert "mean over its 8 input channels" in " ".join(texts(plots.filters(np.ones((3, 3, 8, 2))).axes[0]))
    assert "the first 64 of 70 filters" in texts(plots.filters(np.ones((3, 3, 1, 70))).axes[0])[1]


def test_feature_maps_show_all_and_the_first_four_of_each_stage():
    rng = np.random.default_rng(0)
    maps = {"conv1": rng.random((14, 14, 32)), "conv2": rng.random((7, 7, 64))}
    image = rng.random((28, 28, 1))
    full = texts(plots.feature_maps(maps["conv2"], title="conv2", image=image).axes[0])
    assert full[:2] == ["conv2", "7 \N{MULTIPLICATION SIGN} 7, 64 maps"]
    assert full[2:66] == [str(i) for i in range(1, 65)]
    assert "the first 16 of 64 maps" in texts(plots.feature_maps(maps["conv2"], limit=16).axes[0])[1]

    axes = plots.feature_maps_side_by_side(maps, image).axes[0]
    named = {t.get_text(): t.get_position() for t in axes.texts if "filter" in t.get_text()}
    assert list(named) == [f"{stage} · filter {i}" for stage in ("conv1", "conv2") for i in (1, 2, 3, 4)]
    xs, ys = np.array(list(named.values())).reshape(2, 4, 2).transpose(2, 0, 1)
    np.testing.assert_array_equal(xs[0], xs[1])  # 2 rows of 4, conv1 above
    assert len(set(xs[0])) == 4
    assert ys[0].max() < ys[1].min()


def test_feature_maps_are_drawn_on_one_scale():
    maps = np.zeros((2, 2, 2), np.float32)
    maps[..., 1] = 3
    pixels = page(plots.feature_maps(maps, columns=2))
    dark, bright = np.array([68, 1, 84]), np.array([253, 231, 36])  # the ends of viridis
    assert (np.abs(pixels.astype(int) - dark).max(axis=-1) < 3).sum() > 10_000
    assert (np.abs(pixels.astype(int) - bright).max(axis=-1) < 3).sum() > 10_000


def test_class_counts():
    (axes,) = plots.class_counts({"train": [3, 5], "test": [1, 0]}, ["a", "b"]).axes
    assert [bar.get_width() for bars in axes.containers for bar in bars] == [3, 5, 1, 0]
    assert legend(axes) == ["train: 8", "test: 1"]
    (many,) = plots.class_counts({"train": np.arange(100)}, [str(i) for i in range(100)]).axes
    assert legend(many) == ["train: 0 to 99"]
    np.testing.assert_array_equal(many.lines[0].get_ydata(), np.arange(100)[::-1])


def test_curves():
    history = [{"step": s, "split": "train", "loss": 2.0 / s, "accuracy": 1 - 1 / s} for s in (1, 2, 3)]
    history += [{"step": s, "split": "test", "loss": s / 10, "accuracy": 0.5} for s in (1, 3)]
    history += [{"step": 3, "split": "gradients", "conv1": 1.0}]
    loss, accuracy = plots.curves(history).axes
    assert (loss.get_title(loc="left"), accuracy.get_title(loc="left")) == ("Loss", "Accuracy")
    assert legend(loss) == ["train 0.6667", "test 0.3000 (best 0.1000)"]
    train, test = loss.lines
    np.testing.assert_allclose(train.get_xydata(), [(1, 2), (2, 1), (3, 2 / 3)])
    np.testing.assert_allclose(test.get_xydata(), [(1, 0.1), (3, 0.3)])
    assert accuracy.get_xlabel() == "step"
    assert loss.get_yscale() == "linear"


def test_curves_by_epoch_on_a_logarithmic_axis_and_with_nan():
    history = [{"step": s, "epoch": s / 10, "loss": 10.0**-s} for s in range(4)]
    (axes,) = plots.curves([*history, {"step": 9, "epoch": 0.9, "loss": np.nan}], metrics=["loss"]).axes
    assert (axes.get_yscale(), axes.get_xlabel()) == ("log", "epoch")
    assert len(plots.curves([]).axes) == 2


def test_long_curves_show_a_running_mean():
    history = [{"step": s, "loss": 1.0 + s % 2} for s in range(400)]
    (axes,) = plots.curves(history, metrics=["loss"]).axes
    raw, mean = (line.get_ydata() for line in axes.lines)
    assert len(raw) == len(mean) == 400
    assert np.ptp(mean) < 0.3 < np.ptp(raw)


def test_confusion_matrix():
    (axes,) = plots.confusion_matrix(np.array([[8, 2], [0, 10]]), ["cat", "dog"]).axes
    assert texts(axes)[:3] == ["8", "2", "10"]  # no zeros
    assert "at most 20.0% of a row" in texts(axes)[3]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat", "dog"]
    picture = axes.images[0].get_array()
    np.testing.assert_array_equal(picture[1, 0], [1, 1, 1])
    np.testing.assert_allclose(picture[1, 1], 1 - 0.9 * (1 - np.array(to_rgb(BLUE))))
    np.testing.assert_allclose(picture[0, 1], 1 - 0.85 * (1 - np.array(to_rgb(ORANGE))))

    (axes,) = plots.confusion_matrix(np.eye(120, dtype=int), [f"class {i}" for i in range(120)]).axes
    assert texts(axes) == ["blue: right; there are no mistakes"]
    with pytest.raises(ValueError, match=r"matrix: expected \[3, 3\], got \[2, 2\]"):
        plots.confusion_matrix(np.eye(2), DIGITS[:3])


def test_per_class():
    (axes,) = plots.per_class([0.9, 0.8], [0.7, 1.0], [0.8, 0.9], ["a", "b"]).axes
    precision, recall, f1 = (c.get_offsets()[:, 0] for c in axes.collections[1:])
    np.testing.assert_allclose([precision, recall, f1], [[0.9, 0.8], [0.7, 1.0], [0.8, 0.9]])
    f1 = np.linspace(1, 0, 100)
    (axes,) = plots.per_class(f1, f1, f1, [f"class {i}" for i in range(100)]).axes
    assert "30 classes of lowest F1" in axes.get_title(loc="left")
    assert axes.get_yticklabels()[0].get_text() == "class 99"


def test_calibration_error_by_hand():
    # Gaps of 0.1 and 0.2 over 2 and 6 examples: (2 × 0.1 + 6 × 0.2) / 8 = 0.175.
    figure = plots.calibration([0.4, np.nan, 0.8], [0.5, np.nan, 1.0], [2, 0, 6])
    axes, below = figure.axes
    assert axes.get_title(loc="left") == "Calibration: expected error 17.50%"
    assert [bar.get_height() for bar in axes.containers[0]] == [0.5, 1.0]
    assert [bar.get_height() for bar in below.containers[0]] == [0.25, 0, 0.75]
    np.testing.assert_allclose([s[:, 1] for s in axes.collections[0].get_segments()], [[0.5, 0.4], [1, 0.8]])


def test_gradient_norms():
    (axes,) = plots.gradient_norms([0, 1, 2], {"conv1": [1, 0.1, 0.001], "fc1": [1, 0, np.nan]}).axes
    assert axes.get_yscale() == "log"
    assert legend(axes) == ["conv1", "fc1"]
    np.testing.assert_array_equal(np.isnan(axes.lines[1].get_ydata()), [False, True, True])
    (axes,) = plots.gradient_norms([0, 10], {f"layer{i}": [1, 10.0**-i] for i in range(20)}).axes
    assert axes.images[0].get_array().shape[:2] == (20, 2)
    assert axes.get_yticklabels()[0].get_text() == "layer0"


def test_gradient_norms_of_one_step():
    (axes,) = plots.gradient_norms([5], {f"layer{i}": [1.0] for i in range(20)}).axes
    assert axes.get_xlim() == (5, 6)


def test_gradient_norms_without_a_finite_value():
    for layers in (2, 20):
        plots.gradient_norms([0, 1], {f"layer{i}": [np.nan, 0] for i in range(layers)})
        plots.gradient_norms([], {f"layer{i}": [] for i in range(layers)})
    plots.learning_rate([], [])


def test_learning_rate():
    (axes,) = plots.learning_rate([0, 1], [1e-3, 0]).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1e-3, 0])


def test_tick_labels():
    assert [power_of_ten(v) for v in (0.001, 1, 100, 20, 0)] == ["10⁻³", "10⁰", "10²", "", ""]
    assert [short_number(v) for v in (0.25, -2, 1500, 20_000, 2.5e6)] == [
        "0.25",
        "\N{MINUS SIGN}2",
        "1,500",
        "20k",
        "2.5M",
    ]


def test_files_are_the_same_bytes_and_settings_stay_as_they_were(tmp_path):
    before = dict(rcParams)
    for draw in (
        lambda: plots.confusion_matrix(np.eye(3, dtype=int), ["$a$", "猫", "c"]),  # the font lacks one
        lambda: plots.image_grid(np.zeros((2, 4, 4), np.uint8), ["$a", "b"]),
    ):
        first = plots.save(draw(), tmp_path / "a/first.png").read_bytes()
        second = plots.save(draw(), tmp_path / "a/second.png").read_bytes()
        assert first == second
        assert b"tEXt" not in first
    assert int.from_bytes(first[16:20]) == 4.8 * DPI
    assert dict(rcParams) == before
