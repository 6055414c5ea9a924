"""The U-Net that works at half the size: what is rearranged comes back, and its ground follows the colours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import unfreeze

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.models.unet_guided import _depth_to_space, _space_to_depth


def test_four_neighbours_become_channels_and_come_back():
    image = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    small = _space_to_depth(image)
    assert small.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(small[1, 1, 2], np.asarray(image)[1, 2:4, 4:6].reshape(12))
    np.testing.assert_array_equal(_depth_to_space(small), image)


@pytest.fixture(scope="module")
def network():
    model = models.create("unet_guided", num_classes=3)
    images = jax.random.normal(jax.random.key(1), (2, 16, 24, 3))
    return model, unfreeze(jax.jit(model.init)(jax.random.key(0), images)), images


def test_the_logit_of_the_ground_is_affine_in_the_colours(network):
    """With a guide that is the same everywhere, it is the plain logit plus slopes · colours + offset."""
    model, variables, images = network
    run = jax.jit(lambda params: model.apply(variables | {"params": params}, images)["logits"])
    params = variables["params"]
    nothing = params | {"guide": jax.tree.map(jnp.zeros_like, params["guide"])}
    slopes = jnp.array([0.5, -1.0, 2.0, 0.25])
    guided = params | {"guide": {"kernel": nothing["guide"]["kernel"], "bias": slopes}}
    added = run(guided) - run(nothing)
    np.testing.assert_allclose(added[..., 0], images @ slopes[:3] + slopes[3], atol=1e-5)
    np.testing.assert_array_equal(added[..., 1:], 0)


def test_sizes(network):
    model, variables, images = network
    shapes = jax.eval_shape(lambda: model.apply(variables, images))
    assert {name: x.shape for name, x in shapes.items()} == {"logits": (2, 16, 24, 3), "aux": (2, 16, 24, 3)}
    with pytest.raises(InputError, match=r"unet_guided: images of shape \(1, 20, 16, 3\), expected .* multiples of 8"):
        model.init(jax.random.key(0), jnp.zeros((1, 20, 16, 3)))
