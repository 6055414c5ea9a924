"""What is written for other programs comes back as it was, here and in another process."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.sources import Source


def randomised(key, model):
    variables = jax.jit(model.init)(key, jnp.zeros((1, 32, 32, 3)))
    # Statistics and scales as training might leave them, rather than zeros and ones.
    leaves, tree = jax.tree.flatten(variables)
    draw = np.random.default_rng(0).uniform
    return tree.unflatten([leaf + draw(0.1, 0.5, leaf.shape).astype(np.float32) for leaf in leaves])


def test_a_program_takes_any_batch_here_and_in_another_process(tmp_path, key):
    model = ResNet(depths=(1, 1), block="basic", width=4, num_classes=3)
    apply = partial(model.apply, randomised(key, model))
    path = models.export(apply, tmp_path / "net.jaxexport", image_shape=(16, 16, 3))
    loaded = models.load_exported(path)
    images = np.random.default_rng(1).normal(size=(5, 16, 16, 3)).astype(np.float32)
    expected = jax.jit(apply)(images)
    for count in (1, 5):
        np.testing.assert_allclose(loaded(images[:count]), expected[:count], rtol=1e-4, atol=1e-5)
    np.save(tmp_path / "images.npy", images)
    code = (  # without this package
        "import jax, numpy, pathlib, sys\n"
        "program = jax.export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))\n"
        "numpy.save(sys.argv[3], program.call(numpy.load(sys.argv[2])))\n"
        "assert 'cnn_jax' not in sys.modules"
    )
    files = (path, tmp_path / "images.npy", tmp_path / "logits.npy")
    subprocess.run([sys.executable, "-c", code, *map(str, files)], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(files[2]), expected, rtol=1e-4, atol=1e-5)


def test_programs_refuse_what_they_cannot_take(tmp_path):
    path = models.export(lambda images: images.mean((1, 2)), tmp_path / "mean", image_shape=(4, 6, 1))
    with pytest.raises(InputError, match=r"takes images float32\[N,4,6,1\], not float32\[2, 6, 4, 1\]"):
        models.load_exported(path)(np.zeros((2, 6, 4, 1), np.float32))
    with pytest.raises(InputError, match=r"not uint8\[2, 4, 6, 1\]"):
        models.load_exported(path)(np.zeros((2, 4, 6, 1), np.uint8))
    (tmp_path / "cut").write_bytes(path.read_bytes()[:100])
    (tmp_path / "foreign").write_bytes(b"something else" * 20)
    for name in ("cut", "foreign"):
        with pytest.raises(InputError, match=f"{name} is no program that models.export wrote, or is damaged"):
            models.load_exported(tmp_path / name)
    with pytest.raises(InputError, match=r"cannot read \S+nowhere: No such file"):
        models.load_exported(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot write \S+mean/x: "):
        models.export(lambda images: images, tmp_path / "mean" / "x", image_shape=(4, 6, 1))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cut", "foreign", "mean"]


@pytest.mark.parametrize("options", [{}, {"norm": "group", "stem": "large"}])
def test_weights_come_back_bit_for_bit(tmp_path, key, options):
    model = models.create("resnet18", width=4, num_classes=3, **options)
    variables = randomised(key, model)
    path = models.save_pretrained(model, variables, tmp_path / "net.safetensors")
    back = models.create_pretrained("resnet18", path)
    jax.tree.map(np.testing.assert_array_equal, back.variables, variables)
    assert back.model == model
    assert (back.library, back.fresh, back.left_over) == ("torchvision", [], [])


@pytest.mark.parametrize("shape", [(8, 8, 1), (4, 12, 3)])
def test_flattened_layers_come_back_bit_for_bit(tmp_path, key, shape):
    model = models.create("simple_cnn", num_classes=3)
    variables = model.init(key, jnp.zeros((1, *shape)))
    options = {} if shape[0] == shape[1] else {"image_shape": shape}
    path = models.save_pretrained(model, variables, tmp_path / "net.safetensors", **options)
    back = models.load_pretrained("simple_cnn", path, **options)
    jax.tree.map(np.testing.assert_array_equal, back, dict(variables))
    if options:
        with pytest.raises(InputError, match="not those of the model: if its images are not square, give image_shape"):
            models.save_pretrained(model, variables, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("name", "libraries"),
    [
        ("mobilenet_v2", ["torchvision", "timm"]),
        ("efficientnet_b0", ["torchvision", "timm", "efficientnet_pytorch, 16 blocks"]),
        ("efficientnet_lite0", ["timm", "efficientnet_pytorch, 16 blocks"]),
        ("convnext_tiny", ["torchvision", "timm"]),
        ("resnext50_32x4d", ["torchvision"]),
    ],
)
def test_every_library_gives_back_what_it_took(tmp_path, key, name, libraries):
    model = models.create(name, num_classes=3)
    shapes = jax.eval_shape(model.init, key, jnp.zeros((1, 64, 64, 3)))
    draw = np.random.default_rng(0).random
    variables = jax.tree.map(lambda leaf: draw(leaf.shape, np.float32), shapes)
    for library in libraries:
        path = models.save_pretrained(model, variables, tmp_path / "net.safetensors", library=library)
        back = models.create_pretrained(name, path)
        assert back.library == library
        jax.tree.map(np.testing.assert_array_equal, back.variables, dict(variables))


def test_layouts_of_a_flattened_map_of_fixed_size():
    """PyTorch flattens [C,h,w], we [h,w,C]; and back."""
    source = Source(names=(), infer=lambda tensors: ({}, (1, 1, 1)), after_flatten={"fc": (2, 3)})
    theirs = np.arange(5 * 4 * 2 * 3).reshape(5, 24)
    ours = source.from_torch("fc/kernel", theirs, (99, 99))
    np.testing.assert_array_equal(ours.reshape(2, 3, 4, 5)[1, 2, 3], theirs.reshape(5, 4, 2, 3)[:, 3, 1, 2])
    np.testing.assert_array_equal(source.to_torch("fc/kernel", ours, (99, 99)), theirs)


def test_networks_without_names_are_refused(tmp_path, key):
    model = models.create("unet_small")
    with pytest.raises(InputError, match="PyTorch's names for the tensors of UNet are not known"):
        models.save_pretrained(model, {}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="unknown library with a ResNet 'torchvison': did you mean 'torchvision'"):
        models.save_pretrained(models.create("resnet18"), {}, tmp_path / "net", library="torchvison")
