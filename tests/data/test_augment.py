"""Each augmentation: what it promises about range, shape and keys, and one thing that must not change."""

import inspect
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.data import augment as A
from cnn_jax.data import image_ops as ops
from cnn_jax.errors import InputError

N, CLASSES = 24, 7
KEY = jax.random.key(0)
AUGMENTATIONS = {
    "compose": A.compose(A.flip, partial(A.translate, pixels=1)),
    "flip": A.flip,
    "translate": A.translate,
    "pad_crop": partial(A.pad_crop, mode="reflect"),
    "random_resized_crop": A.random_resized_crop,
    "color_jitter": partial(A.color_jitter, hue=0.2),
    "cutout": partial(A.cutout, size=5, value=0.5),
    "random_erasing": partial(A.random_erasing, p=0.9, value=None),
    "mixup": partial(A.mixup, num_classes=CLASSES),
    "cutmix": partial(A.cutmix, num_classes=CLASSES),
    "rand_augment": partial(A.rand_augment, magnitude=20),
}
MIXING = ("mixup", "cutmix")
JITTED = {name: jax.jit(function) for name, function in AUGMENTATIONS.items()}


def make_batch(channels=3, size=(12, 10), dtype=np.uint8, n=N):
    rng = np.random.default_rng(channels)
    images = rng.integers(0, 256, (n, *size, channels))
    images = images.astype(np.uint8) if dtype == np.uint8 else (images / 255).astype(dtype)
    return {"image": images, "label": rng.integers(0, CLASSES, n).astype(np.int32), "id": np.arange(n)}


def floats(batch):
    return np.asarray(ops.as_float(batch["image"]))


def run(function, batch, **options):
    return jax.jit(partial(function, **options))(KEY, batch)


def changed(a, b):
    return (np.asarray(a) != np.asarray(b)).any(axis=(1, 2, 3))


# What all of them promise


def test_public_functions_take_a_key_first_and_options_by_keyword():
    public = {
        name: function
        for name, function in vars(A).items()
        if isinstance(function, types.FunctionType) and function.__module__ == A.__name__ and name[0] != "_"
    }
    del public["named"]  # takes names
    assert set(public) == set(AUGMENTATIONS)
    del public["compose"]  # takes augmentations
    for name, function in public.items():
        key, batch, *options = inspect.signature(function).parameters.values()
        assert (key.name, batch.name) == ("key", "batch"), name
        for option in options:
            assert option.kind is inspect.Parameter.KEYWORD_ONLY, (name, option.name)
            assert option.default is not inspect.Parameter.empty, (name, option.name)
        assert function.__doc__, name


@pytest.mark.parametrize(
    ("name", "channels"), [*((name, 3) for name in AUGMENTATIONS), ("color_jitter", 1), ("rand_augment", 1)]
)
def test_range_shape_dtype_and_key(name, channels):
    batch, augment = make_batch(channels), JITTED[name]
    got = augment(KEY, batch)
    assert got["image"].shape == batch["image"].shape
    assert got["image"].dtype == jnp.float32
    # Blending may leave [0,1] by a rounding error.
    assert got["image"].min() >= -1e-6
    assert got["image"].max() <= 1 + 1e-6
    assert changed(got["image"], floats(batch)).any()
    np.testing.assert_array_equal(got["id"], batch["id"])
    if name in MIXING:
        assert got["label"].shape == (N, CLASSES)
        np.testing.assert_allclose(got["label"].sum(axis=1), 1, atol=1e-6)
    else:
        np.testing.assert_array_equal(got["label"], batch["label"])

    np.testing.assert_array_equal(augment(KEY, batch)["image"], got["image"])
    assert changed(augment(jax.random.key(1), batch)["image"], got["image"]).any()


@pytest.mark.parametrize("name", ["flip", "translate", "mixup"])
def test_float_images_give_the_same_as_bytes(name):
    batch = make_batch()
    as_floats = batch | {"image": floats(batch)}
    np.testing.assert_allclose(JITTED[name](KEY, batch)["image"], JITTED[name](KEY, as_floats)["image"], atol=1e-6)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_image_does_not_depend_on_the_others(name):
    """With another image in row 5, only row 5 changes; under mixing also row 6, whose partner it is."""
    batch = make_batch()
    other = batch | {"image": batch["image"].copy()}
    other["image"][5] = 255 - other["image"][5]
    rows = np.flatnonzero(changed(JITTED[name](KEY, batch)["image"], JITTED[name](KEY, other)["image"]))
    assert set(rows) <= ({5, 6} if name in MIXING else {5})
    # And images that are alike are changed each in its own way.
    alike = batch | {"image": np.repeat(batch["image"][:1], N, axis=0)}
    if name not in MIXING:
        assert len(np.unique(np.asarray(JITTED[name](KEY, alike)["image"]), axis=0)) > 1


# One by one


def test_named_is_composed_in_the_order_given():
    batch = make_batch(3)
    ours = jax.jit(A.named(["shift", "mixup"], 10))(KEY, batch)
    same = jax.jit(A.compose(A.translate, partial(A.mixup, num_classes=10)))(KEY, batch)
    jax.tree.map(np.testing.assert_array_equal, ours, same)
    assert A.named((), 10) is None
    with pytest.raises(InputError, match="unknown augmentation 'shfit': did you mean 'shift'"):
        A.named(["shfit"], 10)


def test_compose_applies_in_order_and_nothing_is_only_to_float():
    batch = make_batch()
    np.testing.assert_array_equal(A.compose()(KEY, batch)["image"], floats(batch))
    seen = []

    def note(name):
        def augment(key, batch):
            seen.append((name, float(jax.random.uniform(key))))
            return batch

        return augment

    A.compose(note("a"), note("b"))(KEY, batch)
    A.compose(note("a"), note("b"), note("c"))(KEY, batch)
    assert [name for name, _ in seen] == ["a", "b", "a", "b", "c"]
    assert seen[:2] == seen[2:4]
    assert len({draw for _, draw in seen}) == 3


def test_flip_twice_is_the_identity():
    batch = make_batch()
    both = partial(A.flip, p=1.0)
    np.testing.assert_array_equal(both(KEY, batch)["image"], floats(batch)[:, :, ::-1])
    np.testing.assert_array_equal(both(KEY, both(KEY, batch))["image"], floats(batch))
    np.testing.assert_array_equal(A.flip(KEY, batch, p=0.0)["image"], floats(batch))
    flipped = changed(A.flip(KEY, make_batch(n=200))["image"], floats(make_batch(n=200)))
    assert 70 < flipped.sum() < 130


def test_translate_moves_whole_pixels():
    """Away from the border no pixel is lost, and all of the 25 shifts by up to two pixels occur."""
    images = np.zeros((300, 9, 9, 1), np.float32)
    images[:, 4, 4], images[:, 4, 5] = 1, 0.5
    got = np.asarray(A.translate(KEY, {"image": images})["image"])
    np.testing.assert_array_equal(got.sum(axis=(1, 2, 3)), 1.5)
    y, x = np.divmod(got.reshape(300, -1).argmax(axis=1), 9)
    assert {*zip(y - 4, x - 4, strict=True)} == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}
    np.testing.assert_array_equal(got[np.arange(300), y, x + 1, 0], 0.5)

    ones = {"image": np.ones((N, 6, 6, 1), np.float32)}
    assert (A.translate(KEY, ones, mode="edge")["image"] == 1).all()
    assert (A.translate(KEY, ones)["image"] == 0).any()


def test_pad_crop_cuts_windows_out():
    batch = make_batch()
    got = np.asarray(A.pad_crop(KEY, batch, padding=0, size=(7, 6))["image"])
    for image, window in zip(floats(batch), got, strict=True):
        every = np.lib.stride_tricks.sliding_window_view(image, (7, 6, 3)).reshape(-1, 7, 6, 3)
        assert (every == window).all(axis=(1, 2, 3)).any()


def test_random_resized_crop():
    square = make_batch(size=(12, 12))
    whole = partial(A.random_resized_crop, scale=(1, 1), ratio=(1, 1))
    np.testing.assert_allclose(run(whole, square)["image"], floats(square), atol=1e-6)

    # No square has the area of an oblong image: its largest square in the middle is taken.
    oblong = make_batch(size=(8, 12))
    np.testing.assert_allclose(run(whole, oblong, size=(8, 8))["image"], floats(oblong)[:, :, 2:10], atol=1e-6)

    # And of one that is too high.
    np.testing.assert_allclose(
        run(whole, make_batch(size=(12, 8)), size=(8, 8))["image"], floats(make_batch(size=(12, 8)))[:, 2:10], atol=1e-6
    )

    # On a ramp, the box can be read off the result: the step between pixels is the box's side over the output's.
    ramp = np.broadcast_to((np.arange(40) / 40)[None, None, :, None], (200, 40, 40, 1)).astype(np.float32)
    got = np.asarray(run(A.random_resized_crop, {"image": ramp}, scale=(0.25, 0.25), ratio=(0.5, 2.0))["image"])
    width = np.diff(got, axis=2)[:, 0, 10:30, 0].mean(axis=1) * 40 * 40
    assert width.min() > 13.5  # 20·√(1/2) = 14.1
    assert width.max() < 28.8  # 20·√2 = 28.3
    assert width.std() > 2


def test_color_jitter():
    batch = make_batch()
    nothing = run(A.color_jitter, batch, brightness=0, contrast=0, saturation=0)
    np.testing.assert_array_equal(nothing["image"], floats(batch))
    images = np.full((300, 2, 2, 1), 0.5, np.float32)  # only brightness can change what is even and grey
    factor = np.asarray(run(A.color_jitter, {"image": images}, hue=0.5, brightness=0.3)["image"])[:, 0, 0, 0] * 2
    assert 0.7 <= factor.min() < 0.72
    assert 1.28 < factor.max() <= 1.3 + 1e-6
    turned = run(A.color_jitter, batch, brightness=0, contrast=0, saturation=0, hue=0.5)["image"]
    np.testing.assert_allclose(turned.max(axis=-1), floats(batch).max(axis=-1), atol=1e-6)  # HSV's value


def test_cutout_erases_one_square():
    images = np.ones((300, 10, 12, 2), np.float32)
    erased = np.asarray(run(A.cutout, {"image": images}, size=4, value=0.25)["image"]) == 0.25
    np.testing.assert_array_equal(erased[..., 0], erased[..., 1])
    assert set(np.unique(erased[..., 0].any(axis=2).sum(axis=1))) == {2, 3, 4}  # cut off at the border
    area = erased[..., 0].sum(axis=(1, 2))
    np.testing.assert_array_equal(area, erased[..., 0].any(axis=2).sum(axis=1) * erased[..., 0].any(axis=1).sum(axis=1))
    np.testing.assert_array_equal(run(A.cutout, {"image": images}, p=0.0)["image"], images)


def test_random_erasing_erases_a_box_of_the_area_asked_for():
    images = np.ones((300, 30, 30, 1), np.float32)
    got = run(A.random_erasing, {"image": images}, p=0.5, scale=(0.1, 0.2), ratio=(0.5, 2.0))["image"]
    erased = np.asarray(got)[..., 0] == 0
    area = erased.sum(axis=(1, 2))
    assert 110 < (area > 0).sum() < 190
    rows, columns = erased.any(axis=2).sum(axis=1), erased.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(area, rows * columns)
    assert area[area > 0].min() > 0.09 * 900
    assert area.max() < 0.21 * 900

    # Of this shape no box fits: nothing is erased. Noise differs from pixel to pixel.
    np.testing.assert_array_equal(
        run(A.random_erasing, {"image": images}, p=1.0, scale=(0.5, 0.5), ratio=(9, 9))["image"], images
    )
    noise = np.asarray(run(A.random_erasing, {"image": images}, p=1.0, value=None)["image"])
    assert len(np.unique(noise[0])) == (noise[0] != 1).sum() + 1


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_blends_images_as_it_blends_labels(alpha):
    batch = make_batch(n=200) | {"label": np.arange(200) % 2}  # partners are of the other class
    got = run(A.mixup, batch, num_classes=CLASSES, alpha=alpha)
    own = np.asarray(got["label"])[np.arange(200), batch["label"]]
    x, w = floats(batch), own[:, None, None, None]
    np.testing.assert_allclose(got["image"], w * x + (1 - w) * np.roll(x, 1, axis=0), atol=1e-5)
    # Beta(α, α) has mean 1/2 and variance 1/(8α + 4).
    assert abs(own.mean() - 0.5) < 0.12
    assert abs(own.var() - 1 / (8 * alpha + 4)) < 0.03


def test_the_box_of_cutmix_has_the_area_that_is_drawn(monkeypatch):
    monkeypatch.setattr(A, "_own_share", lambda key, batch, alpha, p: jnp.full(len(batch["image"]), 0.75))
    images = np.float32(np.broadcast_to(np.arange(200)[:, None, None, None] % 2, (200, 16, 12, 1)))
    got = A.cutmix(jax.random.key(0), {"image": images, "label": np.arange(200) % 2}, num_classes=2)["image"]
    pasted = np.asarray(got != images).sum((1, 2, 3))
    assert pasted.max() == 8 * 6  # a quarter, where no border cuts it
    assert pasted.min() >= 4 * 3  # around a corner


def test_cutmix_weighs_labels_by_pixels():
    batch = make_batch(channels=1, n=200) | {"label": np.arange(200) % 2}
    batch["image"] = np.float32(np.broadcast_to(batch["label"][:, None, None, None], (200, 12, 10, 1)))
    got = run(A.cutmix, batch, num_classes=2)
    share_of_ones = np.asarray(got["image"]).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(got["label"][:, 1], share_of_ones, atol=1e-6)
    assert 0.1 < share_of_ones.std() < 0.5
    assert set(np.unique(got["image"])) == {0, 1}


@pytest.mark.parametrize("name", MIXING)
def test_mixing_spares_padding_and_takes_soft_labels(name):
    mask = np.arange(N) < 15
    batch = make_batch() | {"mask": mask}
    batch["image"][~mask] = 0
    batch["label"][~mask] = -1
    got = JITTED[name](KEY, batch)
    x = floats(batch)
    kept = np.append(np.flatnonzero(~mask), 0)  # the padding itself, and row 0, whose partner is the last row
    np.testing.assert_array_equal(np.asarray(got["image"])[kept], x[kept])
    np.testing.assert_allclose(got["label"][:15].sum(axis=1), 1, atol=1e-6)

    function = getattr(A, name)
    soft = batch | {"label": jax.nn.one_hot(batch["label"], CLASSES)}
    np.testing.assert_allclose(JITTED[name](KEY, soft)["label"], got["label"], atol=1e-6)
    np.testing.assert_array_equal(run(function, soft, p=0.0)["image"], x)


def test_rand_augment_runs_each_operation_by_itself():
    """With its index given, an operation does to every image what the function of that name does."""
    x = ops.as_float(make_batch(size=(20, 30))["image"])
    strength, sign = 0.5, jnp.where(jnp.arange(N) % 2 == 0, 1.0, -1.0)
    shift_x, shift_y = round(15 * 150 / 331), round(10 * 150 / 331)
    angle = sign * jnp.pi / 12

    def warp(x, a=1.0, b=0.0, c=0.0, d=0.0, e=1.0, f=0.0):
        rows = jnp.stack([jnp.broadcast_to(value, N) for value in (a, b, c, d, e, f)], axis=-1)
        return ops.affine(x, rows.reshape(N, 2, 3))

    @jax.jit
    def by_name(x):
        return {
            "identity": x,
            "shear_x": warp(x, b=0.15 * sign),
            "shear_y": warp(x, d=0.15 * sign),
            "translate_x": warp(x, c=shift_x * sign),
            "translate_y": warp(x, f=shift_y * sign),
            "rotate": warp(x, jnp.cos(angle), jnp.sin(angle), 0.0, -jnp.sin(angle), jnp.cos(angle)),
            "brightness": ops.brightness(x, 1 + 0.45 * sign),
            "color": ops.saturation(x, 1 + 0.45 * sign),
            "contrast": ops.contrast(x, 1 + 0.45 * sign),
            "sharpness": ops.sharpness(x, 1 + 0.45 * sign),
            "posterize": ops.posterize(x, 6),
            "solarize": ops.solarize(x, 0.5),
            "autocontrast": ops.autocontrast(x),
            "equalize": ops.equalize(x),
        }

    expected = by_name(x)
    assert set(expected) == set(A._OPERATIONS)
    apply = jax.jit(lambda index: A._apply_operation(x, index, sign, strength, 0.0))
    for index, name in enumerate(A._OPERATIONS):
        np.testing.assert_allclose(apply(jnp.full(N, index)), expected[name], atol=1e-5, err_msg=name)
    # A whole-pixel translation loses no precision.
    np.testing.assert_array_equal(expected["translate_x"][0, :, :-shift_x], x[0, :, shift_x:])
    # Each image its own operation.
    mixed = apply(jnp.arange(N) % 14)
    for i in range(N):
        np.testing.assert_allclose(mixed[i], expected[A._OPERATIONS[i % 14]][i], atol=1e-5)


def test_rand_augment_at_magnitude_zero_only_stretches_histograms():
    """Images that use all levels evenly are fixed points of autocontrast and equalize, so nothing is left to do."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.permutation(np.arange(1024) // 4).reshape(32, 32, 1) for _ in range(N)]).astype(np.uint8)
    got = run(A.rand_augment, {"image": x}, magnitude=0, num_ops=1)["image"]
    np.testing.assert_allclose(got, x / np.float32(255), atol=1e-5)


# What the user got wrong


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (A.flip, {"p": 1.5}, "p is 1.5"),
        (A.translate, {"pixels": -1}, "padding is -1"),
        (A.pad_crop, {"padding": 0, "size": (20, 20)}, r"size \(20, 20\) does not fit into images of 12x10"),
        (A.random_resized_crop, {"scale": (0.5, 0.1)}, "scale is"),
        (A.random_resized_crop, {"ratio": (0, 1)}, "ratio is"),
        (A.color_jitter, {"hue": 0.6}, "hue at most 0.5"),
        (A.cutout, {"size": 0}, "size is 0"),
        (A.mixup, {}, "num_classes is None"),
        (A.cutmix, {"num_classes": CLASSES, "alpha": 0.0}, "alpha is 0.0"),
        (A.rand_augment, {"magnitude": 31}, "magnitude 31"),
    ],
)
def test_bad_options(function, options, words):
    with pytest.raises(InputError, match=words):
        function(KEY, make_batch(), **options)
