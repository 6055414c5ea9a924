"""Maps against hand values, loops in NumPy, and what must hold of them: batches, keys and compilation."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from networks import filled

from cnn_jax import tasks
from cnn_jax.analysis import attribution, cam
from cnn_jax.analysis.box_scores import box_score
from cnn_jax.analysis.guided import guided
from cnn_jax.analysis.scores import Score, class_score, pixel_score
from cnn_jax.errors import InputError
from cnn_jax.models.layers import Conv, activated, tap


class Net(nn.Module):
    """Two convolutions, and a linear head on the mean over the image, as in Zhou et al. 2016."""

    @nn.compact
    def __call__(self, images, *, train=False):
        x = tap(self, "conv1", nn.relu(Conv(3, name="conv1")(images)))
        x = tap(self, "conv2", nn.relu(Conv(4, stride=2, name="conv2")(x)))
        return tap(self, "logits", nn.Dense(5, name="logits")(tap(self, "pre_logits", x.mean((1, 2)))))


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


IMAGES = random(3, 8, 6, 2)
LABELS = [4, 0, 2]
NET = Net()
VARIABLES = filled(NET, IMAGES)


@pytest.fixture(scope="module")
def score():
    return net(LABELS)


def net(labels, **options):
    return class_score(NET, VARIABLES, labels, **options)


def linear(weights, images):
    return jnp.einsum("nhwc,hwc->n", images, weights)


METHODS = {
    "gradient": attribution.gradient,
    "gradient × input": attribution.gradient_times_input,
    "guided back-propagation": attribution.guided_backpropagation,
    "integrated gradients": lambda *a, **k: attribution.integrated_gradients(*a, steps=5, **k).maps,
    "SmoothGrad": lambda *a, **k: attribution.smooth_grad(jax.random.key(1), *a, samples=4, **k),
    "occlusion": partial(attribution.occlusion, window=3, stride=2, baseline=0.5),
    "RISE": lambda *a, **k: attribution.rise(jax.random.key(1), *a, masks=9, cells=3, **k),
    "Grad-CAM": partial(cam.grad_cam, stage="conv1"),
    "Grad-CAM++": partial(cam.grad_cam_plus_plus, stage="conv1"),
    "Layer-CAM": partial(cam.layer_cam, stage="conv1"),
}


@pytest.mark.parametrize("name", METHODS)
def test_neither_batches_nor_beside_whom_matters(score, name):
    """Each image keeps its own target, in a batch that is filled up, and alone at two steps at a time."""
    method = METHODS[name]
    maps = method(score, IMAGES, batch_size=2)
    assert maps.shape in (IMAGES.shape, IMAGES.shape[:3])
    assert maps.dtype == jnp.float32
    for row in range(1 if name == "SmoothGrad" else 3):  # whose noise depends on the row
        alone = class_score(NET, score.variables, LABELS[row])
        found = method(alone, IMAGES[row : row + 1], batch_size=2)
        np.testing.assert_allclose(found, maps[row : row + 1], rtol=1e-4, atol=1e-6)


def test_a_linear_score_is_explained_exactly():
    weights = random(8, 6, 2, seed=1)
    score = Partial(linear, weights)  # a plain function too: f32[N,H,W,C] to f32[N]
    np.testing.assert_allclose(attribution.gradient(score, IMAGES), np.broadcast_to(weights, IMAGES.shape))
    np.testing.assert_allclose(attribution.gradient_times_input(score, IMAGES), weights * IMAGES, rtol=1e-6)
    for baseline in (0.5, random(8, 6, 2, seed=2), random(*IMAGES.shape, seed=3)):
        found = attribution.integrated_gradients(score, IMAGES, baseline=baseline, steps=3)
        np.testing.assert_allclose(found.maps, weights * (IMAGES - baseline), atol=1e-5)
        np.testing.assert_allclose(found.gap, 0, atol=1e-5)
        pixel = attribution.occlusion(score, IMAGES, window=1, baseline=baseline)
        np.testing.assert_allclose(pixel, (weights * (IMAGES - baseline)).sum(-1), atol=1e-5)
    smooth = attribution.smooth_grad(jax.random.key(0), lambda images: linear(weights, images), IMAGES, samples=3)
    np.testing.assert_allclose(smooth, np.broadcast_to(weights, IMAGES.shape), rtol=1e-6)


def cubes(images):
    return (images**3).sum((1, 2, 3))


def test_integrated_gradients_of_cubes():
    """The mean of 3x² from b to x, times x − b, is x³ − b³, for which Gauss's rule needs two points."""
    found = attribution.integrated_gradients(cubes, IMAGES, baseline=-0.3, steps=2)
    np.testing.assert_allclose(found.maps, IMAGES**3 + 0.3**3, rtol=1e-4, atol=1e-4)
    one = attribution.integrated_gradients(cubes, IMAGES, baseline=-0.3, steps=1)  # 3 ((x + b) / 2)² (x − b)
    middle = 3 * ((IMAGES - 0.3) / 2) ** 2 * (IMAGES + 0.3)
    np.testing.assert_allclose(one.maps, middle, rtol=1e-4, atol=1e-4)
    gap = (middle - IMAGES**3 - 0.3**3).sum((1, 2, 3))
    np.testing.assert_allclose(one.gap, gap, rtol=1e-4, atol=1e-3)


def squares(images):
    return (images**2).sum((1, 2, 3)) / 2


def test_the_noise_of_smooth_grad():
    """The gradient of squares is the noisy image itself: so the map less the image is the mean of the noise."""
    images = np.concatenate([IMAGES[:1], 10 * IMAGES[:1]])
    of_range = images.max((1, 2, 3)) - images.min((1, 2, 3))
    noise = attribution.smooth_grad(jax.random.key(0), squares, images, samples=25, noise=0.2) - images
    deviation = np.sqrt((np.asarray(noise) ** 2).mean((1, 2, 3)))
    np.testing.assert_allclose(deviation, 0.2 * of_range / 5, rtol=0.25)  # 96 numbers of each
    other = attribution.smooth_grad(jax.random.key(1), squares, images, samples=25, noise=0.2) - images
    assert abs(np.corrcoef(np.ravel(noise), np.ravel(other))[0, 1]) < 0.3


def test_occlusion_by_loops(score):
    window, stride = 4, 3
    total, count = np.zeros(IMAGES.shape[:3]), np.zeros(IMAGES.shape[:3])
    compiled = jax.jit(score)
    whole = np.asarray(compiled(IMAGES))
    for top in (0, 3, 6):  # the last is cut
        for left in (0, 3):
            covered = IMAGES.copy()
            covered[:, top : top + window, left : left + window] = 0
            total[:, top : top + window, left : left + window] += (whole - compiled(covered))[:, None, None]
            count[:, top : top + window, left : left + window] += 1
    found = attribution.occlusion(score, IMAGES, window=window, stride=stride)
    np.testing.assert_allclose(found, total / count, atol=1e-5)


def one_pixel(images):
    return images[:, 5, 1, 0]


def test_rise_finds_what_the_score_sees(key):
    """The map is E[m m′] / E[m] of a pixel and the one that the score sees: ½ far away, more near it."""
    images = np.ones((1, 8, 6, 1), np.float32)
    maps = np.asarray(attribution.rise(key, one_pixel, images, masks=3000, cells=4))[0]
    np.testing.assert_allclose(maps[:3, 4:], 0.5, atol=0.05)
    assert maps[5, 1] > max(0.95 * maps.max(), 0.6)
    # What is not let through is the baseline: of 2 and 0.5 the score is 0.5 + 1.5 m, and so is the map.
    beside = attribution.rise(key, one_pixel, 2 * images, masks=3000, cells=4, baseline=0.5)[0]
    np.testing.assert_allclose(beside, 0.5 + 1.5 * maps, rtol=1e-4)


def test_rise_shows_nothing_of_a_score_that_sees_nothing(key):
    images = np.random.default_rng(0).normal(size=(2, 8, 6, 1)).astype(np.float32)
    maps = attribution.rise(key, lambda images: jnp.full(len(images), 3.0), images, masks=7, cells=3)
    np.testing.assert_allclose(maps, 3, rtol=1e-6)


def test_no_more_than_a_batch_at_once():
    """However many steps, samples, squares or masks: so memory does not grow with them."""
    together = []

    def score(images):
        together.append(len(images))
        return images.sum((1, 2, 3))

    for name in ("integrated gradients", "SmoothGrad", "occlusion", "RISE"):
        METHODS[name](score, IMAGES, batch_size=2)
        METHODS[name](score, IMAGES[:1], batch_size=2)
    assert max(together) == 2


def test_other_weights_and_targets_are_not_compiled_again(score):
    for method in METHODS.values():
        method(score, IMAGES, batch_size=2)
    variables = jax.tree.map(lambda leaf: 2 * leaf, score.variables)
    other = class_score(Net(), variables, np.array([1, 1, 3]))
    with jax.no_tracing():
        found = [method(other, IMAGES, batch_size=2) for method in METHODS.values()]
    assert not np.allclose(found[0], attribution.gradient(score, IMAGES, batch_size=2))


# Guided back-propagation


def test_guided_by_hand():
    """y = relu(x), z = relu(y @ m): what is negative at the output of either ReLU is dropped."""
    m = jnp.array([[1.0, -3.0], [2.0, 1.0], [1.0, 1.0]])

    def function(x):
        return (nn.relu(nn.relu(x) @ m) * jnp.array([2.0, 1.0])).sum()

    derivatives = jax.jit(lambda x: (jax.grad(guided(function))(x), jax.grad(function)(x)))
    x = jnp.array([1.0, 0.5, -1.0])  # y = (1, .5, 0), y @ m = (2, −2.5): 2·m[:, 0] = (2, 4, 2)
    np.testing.assert_array_equal(derivatives(x)[0], [2, 4, 0])
    x = jnp.array([1.0, 4.0, -1.0])  # y @ m = (9, 1): m @ (2, 1) = (−1, 5, 3), of which −1 is dropped
    np.testing.assert_array_equal(derivatives(x), [[0, 5, 0], [-1, 5, 0]])
    assert guided(function)(x) == function(x)


def test_guided_sees_every_relu():
    """In compiled functions, loops, choices and rematerialised parts, at the end of a block; ReLU6; one many times."""
    signs = jnp.array([1.0, -1.0])

    def loop(x):
        return jax.lax.scan(lambda x, _: (nn.relu(x), None), x, None, length=2)[0]

    def choice(x):
        return jax.lax.cond(x[0] > 0, nn.relu, lambda x: x, x)

    def derivatives(x):
        parts = (
            nn.relu,
            nn.relu6,
            jax.jit(nn.relu),
            jax.checkpoint(nn.relu),
            loop,
            choice,
            partial(activated, nn.relu),
        )
        functions = [lambda x, part=part: (part(part(x)) * signs).sum() for part in parts]
        return [(jax.grad(guided(function))(x), jax.grad(function)(x)) for function in functions]

    x = jnp.array([2.0, 3.0])
    for found, plain in jax.jit(derivatives)(x):
        np.testing.assert_array_equal(found, [1, 0])
        np.testing.assert_array_equal(plain, signs)
    found = jax.jit(jax.grad(guided(lambda x: nn.relu6(x).sum())))(jnp.array([-1.0, 5, 7]))
    np.testing.assert_array_equal(found, [0, 1, 0])
    # Other functions that have derivatives of their own, and no ReLU inside, keep them.
    mixed = lambda x: (nn.relu(x) + jax.nn.silu(x) + jnp.maximum(x, 0)).sum()  # noqa: E731
    np.testing.assert_allclose(*jax.jit(lambda x: (jax.grad(guided(mixed))(x), jax.grad(mixed)(x)))(x))
    with pytest.raises(InputError, match="needs a network with ReLUs"):
        attribution.guided_backpropagation(squares, IMAGES)


# Class activation maps


def enlarged(maps):
    """By 2, bilinearly, as an image of pixels with areas: weights ¾ and ¼, and at the border the pixel itself."""
    for axis in (1, 2):
        padded = np.pad(maps, [(1, 1) if i == axis else (0, 0) for i in range(3)], mode="edge")
        before, here, after = (np.moveaxis(padded, axis, 0)[i : i + maps.shape[axis]] for i in range(3))
        pairs = np.stack([0.25 * before + 0.75 * here, 0.75 * here + 0.25 * after], axis=1)
        maps = np.moveaxis(pairs.reshape(-1, *pairs.shape[2:]), 0, axis)
    return maps


@pytest.mark.parametrize("name", ["grad_cam", "grad_cam_plus_plus", "layer_cam"])
def test_cams_before_a_mean_and_a_linear_head(score, name):
    """There the gradient is known: the head's weights over the number of places, the same at all places."""
    _, state = NET.apply(score.variables, IMAGES, mutable=["intermediates"])
    activations = np.asarray(state["intermediates"]["conv2"][0], np.float64)  # [3,4,3,4]
    places = activations.shape[1] * activations.shape[2]
    gradients = np.asarray(score.variables["params"]["logits"]["kernel"], np.float64).T[LABELS] / places
    positive = np.maximum(gradients, 0)
    sums = activations.sum((1, 2))
    share = gradients**2 / (2 * gradients**2 + sums * gradients**3 + 1e-6)
    weights = {"grad_cam": gradients, "grad_cam_plus_plus": places * share * positive, "layer_cam": positive}[name]
    small = np.maximum((activations * weights[:, None, None]).sum(-1), 0)
    found = getattr(cam, name)(score, IMAGES, stage="conv2")
    np.testing.assert_allclose(found, enlarged(small), atol=1e-6)
    assert small.max() > 1e-3


class Nested(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        return Net(name="backbone")(images)


def test_a_stage_of_a_submodule(score):
    variables = {"params": {"backbone": score.variables["params"]}}
    nested = class_score(Nested(), variables, LABELS)
    found = cam.grad_cam(nested, IMAGES, stage="backbone/conv2")
    np.testing.assert_allclose(found, cam.grad_cam(score, IMAGES, stage="conv2"), rtol=1e-5, atol=1e-7)


# Scores


def test_class_scores(score):
    logits = np.asarray(NET.apply(score.variables, IMAGES))
    np.testing.assert_allclose(score(IMAGES), logits[range(3), LABELS], rtol=1e-5)
    probable = class_score(NET, score.variables, 2, probability=True)
    np.testing.assert_allclose(probable(IMAGES), jax.nn.softmax(logits)[:, 2], rtol=1e-5)


class Pointwise(nn.Module):
    """Logits of a pixel are its own numbers and their negatives."""

    auxiliary: bool = False

    @nn.compact
    def __call__(self, images, *, train=False):
        logits = jnp.concatenate([images, -images], axis=-1)
        return {"logits": logits, "aux": logits[:, ::2, ::2]} if self.auxiliary else logits


@pytest.mark.parametrize("auxiliary", [False, True])
def test_pixel_scores(auxiliary):
    score = pixel_score(Pointwise(auxiliary), {}, [(7, 5), (0, 1), (2, 2)], [3, 0, 1])
    expected = np.zeros(IMAGES.shape)
    expected[0, 7, 5, 1], expected[1, 0, 1, 0], expected[2, 2, 2, 1] = -1, 1, 1
    np.testing.assert_array_equal(attribution.gradient(score, IMAGES), expected)
    same = pixel_score(Pointwise(auxiliary), {}, (7, 5), 3)
    np.testing.assert_array_equal(same(IMAGES), -IMAGES[:, 7, 5, 1])


class Detector(nn.Module):
    """Two levels of strides 2 and 4, whose boxes reach one stride to all sides; logits are means of the places."""

    @nn.compact
    def __call__(self, images, *, train=False):
        levels = []
        for stride in (2, 4):
            n, h, w, c = images.shape
            logits = images.reshape(n, h // stride, stride, w // stride, stride, c).mean((2, 4))
            centerness = jnp.zeros(logits.shape[:3])
            levels.append({"logits": logits, "distances": jnp.ones((*logits.shape[:3], 4)), "centerness": centerness})
        return levels


def test_box_scores():
    """The place at (row, column) of a level of stride s stands for the pixel (row · s, column · s)."""
    images = random(2, 8, 8, 3)
    boxes = [[3, 1, 5, 3], [0.5, 0, 8, 8.2]]  # around x 4, y 2 of stride 2; around 4, 4 of stride 4
    score = box_score(Detector(), {}, images, boxes, [2, 0], batch_size=1)
    expected = [images[0, 2:4, 4:6, 2].mean(), images[1, 4:, 4:, 0].mean()]
    np.testing.assert_allclose(score(images), expected, rtol=1e-5)
    gradient = np.zeros(images.shape)
    gradient[0, 2:4, 4:6, 2], gradient[1, 4:, 4:, 0] = 1 / 4, 1 / 16
    np.testing.assert_allclose(attribution.gradient(score, images), gradient)


def test_a_box_that_was_found_has_the_score_that_it_was_found_with():
    images = random(2, 8, 8, 3)
    task = tasks.detect(3, strides=(2, 4), detections=5)
    found = jax.jit(task.predict)(Detector().apply({}, images))
    for i in range(5):
        logits = box_score(Detector(), {}, images, found["boxes"][:, i], found["label"][:, i])(images)
        np.testing.assert_allclose(jnp.sqrt(jax.nn.sigmoid(logits) / 2), found["scores"][:, i], rtol=1e-5)


ONE_IS_NONE = IMAGES.copy()
ONE_IS_NONE[1, 2, 3, 0] = np.nan
ERRORS = {
    "label 5 is out of range: the network's outputs have label 0 to 4": lambda: attribution.gradient(net(5), IMAGES),
    "label -1 is out of range": lambda: net([0, -1, 1])(IMAGES),
    "label has shape (2,) for 3 images": lambda: attribution.gradient(net([0, 1]), IMAGES),
    "label is of type float64: expected whole": lambda: net([0.5]),
    "class_score needs logits [N,classes], and the network gives (N, 8, 6, 4): use pixel_score": lambda: class_score(
        Pointwise(), {}, 0
    )(IMAGES),
    "pixel_score needs logits [N,H,W,classes], and the network gives (N, 5)": lambda: pixel_score(
        NET, VARIABLES, (0, 0), 1
    )(IMAGES),
    "row 8 is out of range: the network's outputs have row 0 to 7": lambda: pixel_score(Pointwise(), {}, (8, 0), 1)(
        IMAGES
    ),
    "pixels have shape (3,): expected (row, column)": lambda: pixel_score(Pointwise(), {}, (1, 2, 3), 1),
    "box_score needs levels with logits and distances": lambda: box_score(
        Pointwise(), {}, IMAGES[:1], [[0, 0, 4, 4]], 0
    ),
    "of image 1 overlaps none": lambda: box_score(
        Detector(), {}, random(2, 8, 8, 3), [[0, 0, 4, 4], [50, 50, 60, 60]], 0
    ),
    "unknown stage 'conv3': did you mean 'conv": lambda: cam.grad_cam(net(0), IMAGES, stage="conv3"),
    "stage 'pre_logits' has shape ('N', 4), and a class activation map needs [N,h,w,C]: one of conv1, conv2": lambda: (
        cam.layer_cam(net(0), IMAGES, stage="pre_logits")
    ),
    "give a Score, such as class_score": lambda: cam.grad_cam(squares, IMAGES, stage="conv1"),
    "images are uint8[3, 8, 6, 2]: expected f32[N,H,W,C]": lambda: attribution.gradient(squares, IMAGES.astype("u1")),
    "images are float32[8, 6, 2]": lambda: attribution.gradient(squares, IMAGES[0]),
    "images hold numbers that are not finite": lambda: attribution.gradient(squares, ONE_IS_NONE),
    "the score gives shape (3, 8) for 3 images": lambda: attribution.gradient(lambda x: x.sum((2, 3)), IMAGES),
    "steps is 0: expected 1 or more": lambda: attribution.integrated_gradients(squares, IMAGES, steps=0),
    "batch_size is 0: it must be 1 or more": lambda: attribution.gradient(squares, IMAGES, batch_size=0),
    "baseline has shape (5,)": lambda: attribution.integrated_gradients(squares, IMAGES, baseline=np.zeros(5)),
    "window is 2 and stride 3 for images of 8×6": lambda: attribution.occlusion(squares, IMAGES, window=2, stride=3),
    "probability is 1: expected": lambda: attribution.rise(jax.random.key(0), squares, IMAGES, probability=1),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message):
    with pytest.raises(InputError) as error:
        ERRORS[message]()
    assert message in str(error.value)


def test_a_score_is_a_pytree(score):
    leaves, tree = jax.tree.flatten(score)
    assert isinstance(jax.tree.unflatten(tree, leaves), Score)
    np.testing.assert_allclose(jax.jit(lambda score, images: score(images))(score, IMAGES), score(IMAGES), rtol=1e-6)
