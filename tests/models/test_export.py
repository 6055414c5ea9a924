"""What is written for other programs comes back as it was, here and in another process."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.models.catalogue import MODELS
from cnn_jax.models.deeplab import DeepLabV3
from cnn_jax.models.fcos import FCOS
from cnn_jax.models.layers import Conv
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.sources import SOURCES, Source
from cnn_jax.models.vgg import VGG


def randomised(key, model):
    variables = jax.jit(model.init)(key, jnp.zeros((1, 32, 32, 3)))
    # Statistics and scales as training might leave them, rather than zeros and ones.
    leaves, tree = jax.tree.flatten(variables)
    draw = np.random.default_rng(0).uniform
    return tree.unflatten([leaf + draw(0.1, 0.5, leaf.shape).astype(np.float32) for leaf in leaves])


def drawn(model, *shape):
    """Random variables, without the cost of its own."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *(shape or (64, 64, 3)))))
    draw = np.random.default_rng(0).random
    return jax.tree.map(lambda leaf: draw(leaf.shape, np.float32), shapes)


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
    with pytest.raises(InputError, match=r"takes images float32\[N,4,6,1\], N of 1 or more, not float32\[2, 6, 4, 1\]"):
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
    with pytest.raises(InputError, match=r"N of 1 or more, not float32\[0, 4, 6, 1\]"):
        models.load_exported(path)(np.zeros((0, 4, 6, 1), np.float32))
    with pytest.raises(InputError, match="unknown platform 'cud': did you mean 'cuda'"):
        models.export(lambda images: images, tmp_path / "x", image_shape=(4, 6, 1), platforms=("cpu", "cud"))


def test_a_bit_of_a_programs_weights_is_not_lost_unnoticed(tmp_path):
    weights = np.random.default_rng(0).random((1, 4, 4, 1), np.float32)
    path = models.export(lambda images: images * weights, tmp_path / "net", image_shape=(4, 4, 1))
    data = bytearray(path.read_bytes())
    data[data.index(weights.tobytes()) + 7] ^= 16
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"net is no program that models\.export wrote, or is damaged"):
        models.load_exported(path)


def test_a_program_is_written_in_the_form_of_its_platform(tmp_path, key):
    layer = Conv(3, groups=3)
    variables = layer.init(key, jnp.zeros((1, 8, 8, 3)))

    def text(platforms):
        apply = partial(layer.apply, variables)
        path = models.export(apply, tmp_path / "net", image_shape=(8, 8, 3), platforms=platforms)
        return jax.export.deserialize(bytearray(path.read_bytes())).mlir_module()

    found = ["stablehlo.convolution" in text(p) for p in (None, ("cpu",), ("cpu", "tpu"), ("cuda",))]
    assert found == [False, False, True, True]
    with pytest.raises(InputError, match="is for cuda, and JAX runs on cpu here"):
        models.load_exported(tmp_path / "net")


# Each classifier, those of many parameters with fewer, or left out where a smaller one has the same rules; and what its
# tensors do not tell of a network.
SMALLER = {ResNet: {"width": 16}, VGG: {"head": "average"}}
LARGE = ("convnext_small", "convnext_base", "convnext_large", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7")
CLASSIFIERS = [
    (name, {k: v for k, v in SMALLER.get(MODELS[name].func, {}).items() if k not in MODELS[name].keywords})
    for name in models.names()
    if MODELS[name].func in SOURCES and MODELS[name].func not in (FCOS, DeepLabV3) and name not in LARGE
]
ONE_OF_EACH = ("resnet9", "resnet50", "wide_resnet16_4", "resnet20", "vgg11", "convnext_tiny", "efficientnet_lite0")
OPTIONS = [
    ("simple_cnn", {"head": "average", "pooling": "blur"}),
    ("simple_cnn", {"norm": "batch", "activation": "tanh"}),
    ("resnet9", {"scale": 1.0, "width": 8}),
    ("resnet18", {"width": 8, "stem": "medium", "norm": "group"}),
    ("resnet18", {"width": 8, "stem": "large", "pooling": "blur"}),
    ("resnet18", {"width": 8, "head": False}),
    ("vgg11", {"head": "average", "norm": "group", "padding": "circular"}),
    ("mobilenet_v2", {"norm": "group", "width": 0.5, "pooling": "blur"}),
    ("efficientnet_lite0", {"norm": "group", "padding": "torch", "epsilon": 1e-4}),
    ("efficientnet_lite0", {"padding": "circular", "pooling": "aps"}),
]


@pytest.mark.parametrize(
    ("name", "options"),
    # The others belong to `make parity-whole`, which looks at every network.
    [
        pytest.param(*case, marks=[] if case[0] in ONE_OF_EACH else [pytest.mark.slow, pytest.mark.peers])
        for case in CLASSIFIERS
    ]
    + OPTIONS,
)
def test_a_network_comes_back_as_it_was(tmp_path, name, options):
    model = models.create(name, num_classes=3, **options)
    variables = drawn(model)
    back = models.create_pretrained(name, models.save_pretrained(model, variables, tmp_path / "net.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, back.variables, dict(variables))
    assert back.model == model == models.create(name, **back.options)
    assert (back.library, back.fresh, back.left_over) == (next(iter(SOURCES[type(model)])), [], [])
    flattens = name == "simple_cnn" and model.head == "flatten"
    assert back.image_shape == ((64, 64, 3) if flattens else (None, None, 3))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"width": 8, "stem": "large"}),
        ("wide_resnet16_4", {}),
        ("wide_resnet16_4", {"norm": "group"}),
        ("simple_cnn", {"norm": "batch"}),
        ("simple_cnn", {"norm": "group"}),
        ("vgg11", {"head": "average", "norm": "group"}),
        ("mobilenet_v2", {"norm": "group"}),
    ],
)
def test_shapes_and_names_alone_tell_much(tmp_path, name, options):
    """As of a file that somebody else has written."""
    model = models.create(name, num_classes=3, **options)
    path = models.save_pretrained(model, drawn(model), tmp_path / "net.safetensors")
    save_file(load_file(path), path)
    assert models.create_pretrained(name, path).model == model


def test_options_of_the_caller_come_first(tmp_path):
    model = models.create("simple_cnn", num_classes=3, activation="tanh", dropout=0.1)
    path = models.save_pretrained(model, drawn(model, 8, 8, 1), tmp_path / "net.safetensors")
    back = models.create_pretrained("simple_cnn", path, activation="gelu")
    assert back.model == model.clone(activation="gelu")


def test_what_a_file_says_of_its_network_can_be_damaged(tmp_path):
    path = tmp_path / "net.safetensors"
    for text in ("no json", '"text"', "{}", '{"network": "ResNet9", "options": 3}'):
        save_file({"stem_conv.weight": np.zeros((8, 3, 3, 3), np.float32)}, path, metadata={"cnn_jax": text})
        with pytest.raises(InputError, match=r"net.safetensors: what it says of its network is damaged"):
            models.create_pretrained("resnet9", path)


def test_a_backbone_takes_a_new_head(tmp_path, key):
    backbone = models.create("resnet18", width=4, head=False)
    variables = drawn(backbone)
    path = models.save_pretrained(backbone, variables, tmp_path / "net.safetensors")
    net = models.create_pretrained("resnet18", path, head=True, num_classes=5, new_head=key)
    assert net.fresh == ["logits/bias", "logits/kernel"]
    assert net.variables["params"].pop("logits")["kernel"].shape == (32, 5)
    jax.tree.map(np.testing.assert_array_equal, net.variables, dict(variables))
    with pytest.raises(InputError, match=r"holds no head, and so does not say .* give num_classes"):
        models.create_pretrained("resnet18", path, head=True, new_head=key)
    with pytest.raises(InputError, match=r"missing: fc\.bias, fc\.weight"):
        models.create_pretrained("resnet18", path, head=True)


@pytest.mark.parametrize("shape", [(8, 8, 1), (4, 12, 3)])
def test_flattened_layers_come_back_bit_for_bit(tmp_path, key, shape):
    model = models.create("simple_cnn", num_classes=3)
    variables = model.init(key, jnp.zeros((1, *shape)))
    options = {} if shape[0] == shape[1] else {"image_shape": shape}
    path = models.save_pretrained(model, variables, tmp_path / "net.safetensors", **options)
    back = models.create_pretrained("simple_cnn", path)
    jax.tree.map(np.testing.assert_array_equal, back.variables, dict(variables))
    assert back.image_shape == shape
    if options:
        with pytest.raises(InputError, match="not those of the model: if its images are not square, give image_shape"):
            models.save_pretrained(model, variables, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("name", "libraries"),
    [
        ("mobilenet_v2", ["torchvision", "timm"]),
        ("efficientnet_b0", ["torchvision", "timm", "efficientnet_pytorch"]),
        ("efficientnet_lite0", ["timm", "efficientnet_pytorch"]),
        ("convnext_tiny", ["torchvision", "timm"]),
        ("resnext50_32x4d", ["torchvision"]),
    ],
)
def test_every_library_gives_back_what_it_took(tmp_path, name, libraries):
    model = models.create(name, num_classes=3)
    variables = drawn(model)
    for library in libraries:
        path = models.save_pretrained(model, variables, tmp_path / "net.safetensors", library=library)
        back = models.create_pretrained(name, path)
        assert (back.library, back.model) == (library, model)
        jax.tree.map(np.testing.assert_array_equal, back.variables, dict(variables))


def test_layouts_of_a_flattened_map_of_fixed_size():
    """PyTorch flattens [C,h,w], we [h,w,C]; and back."""
    source = Source(names=(), infer=lambda tensors: ({}, (1, 1, 1)), after_flatten={"fc": (2, 3)})
    theirs = np.arange(5 * 4 * 2 * 3).reshape(5, 24)
    ours = source.from_torch("fc/kernel", theirs, (99, 99))
    np.testing.assert_array_equal(ours.reshape(2, 3, 4, 5)[1, 2, 3], theirs.reshape(5, 4, 2, 3)[:, 3, 1, 2])
    np.testing.assert_array_equal(source.to_torch("fc/kernel", ours, (99, 99)), theirs)


def test_layouts_of_a_dense_layer_that_is_a_convolution_there():
    """As the first of timm's VGG, whose kernel covers the whole map."""
    source = Source(
        names=(), infer=lambda tensors: ({}, (1, 1, 1)), after_flatten={"fc": (2, 3)}, behind=((r"^fc\.w", (2, 3)),)
    )
    theirs = np.arange(5 * 4 * 2 * 3).reshape(5, 4, 2, 3)
    ours = source.from_torch("fc/kernel", theirs, (99, 99))
    np.testing.assert_array_equal(ours.reshape(2, 3, 4, 5)[1, 2, 3], theirs[:, 3, 1, 2])
    np.testing.assert_array_equal(source.to_torch("fc/kernel", ours, (99, 99)), theirs)
    assert source.torch_shape("fc/kernel", ours.shape) == theirs.shape


def test_networks_without_names_are_refused(tmp_path, key):
    model = models.create("unet_small")
    with pytest.raises(InputError, match="PyTorch's names for the tensors of UNet are not known"):
        models.save_pretrained(model, {}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="unknown library with a ResNet 'torchvison': did you mean 'torchvision'"):
        models.save_pretrained(models.create("resnet18"), {}, tmp_path / "net", library="torchvison")


def test_variables_that_are_none_are_refused(tmp_path):
    model = models.create("simple_cnn")
    variables = drawn(model, 8, 8, 1)
    for wrong in ({}, variables["params"], None):
        with pytest.raises(
            InputError, match=r'the variables are no \{"params", "batch_stats"\}, as model.init returns'
        ):
            models.save_pretrained(model, wrong, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=r"not those of the model: 'fc1\.weight' is missing"):
        models.save_pretrained(model, {"params": {"conv1": variables["params"]["conv1"]}}, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
