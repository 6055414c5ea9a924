import flax.linen as nn
import jax

from cnn_jax import models


def test_simple_cnn_row_by_row():
    table = models.describe(models.create("simple_cnn"), (28, 28, 1))
    assert table.layers == [
        # Two FLOPs for each output × (kernel's side² × input channels).
        ("conv1", "Conv", (28, 28, 32), 320, 2 * 28 * 28 * 32 * 9),
        ("conv2", "Conv", (14, 14, 64), 18_496, 2 * 14 * 14 * 64 * 9 * 32),
        ("fc1", "Dense", (128,), 401_536, 2 * 128 * 3136),
        ("dropout", "Dropout", (128,), 0, 0),
        ("logits", "Dense", (10,), 1_290, 2 * 10 * 128),
    ]
    assert table.parameters == table.trainable == 421_642
    assert table.flops == sum(row.flops for row in table.layers) == 8_482_304


def test_printed_in_columns():
    lines = str(models.describe(models.create("simple_cnn"), (28, 28, 1))).splitlines()
    assert lines[0].split() == ["layer", "type", "output", "parameters", "FLOPs"]
    assert lines[2].split() == ["conv2", "Conv", "14", "×", "14", "×", "64", "18,496", "7,225,344"]
    assert lines[-1].split() == ["in", "all", "421,642", "8,482,304"]
    assert len({len(line) for line in lines}) == 1


def test_trainable_parameters_are_those_chosen():
    model = models.create("simple_cnn")
    table = models.describe(model, (28, 28, 1), trainable=lambda path: path.startswith("logits/"))
    assert (table.parameters, table.trainable) == (421_642, 1_290)


class Odd(nn.Module):
    """Grouped, depthwise, dilated, strided and transposed convolutions, a shared layer, and a parameter of its own."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Conv(8, (3, 3), feature_group_count=4, kernel_dilation=2, strides=2, name="grouped")(x)
        x = nn.Conv(16, (5, 5), feature_group_count=8, use_bias=False, name="depthwise")(x)
        x = nn.ConvTranspose(6, (2, 2), strides=(2, 2), name="up")(x)
        shared = nn.Dense(6, use_bias=False, name="shared")
        x = shared(shared(x))
        return x * self.param("gain", nn.initializers.ones, (1, 1, 1, 6))


def test_odd_layers():
    table = models.describe(Odd(), (8, 8, 4))
    assert table.layers == [
        ("grouped", "Conv", (4, 4, 8), 3 * 3 * 1 * 8 + 8, 2 * 4 * 4 * 8 * 3 * 3 * 1),
        ("depthwise", "Conv", (4, 4, 16), 5 * 5 * 16, 2 * 4 * 4 * 16 * 5 * 5),
        ("up", "ConvTranspose", (8, 8, 6), 2 * 2 * 16 * 6 + 6, 2 * 4 * 4 * 16 * 2 * 2 * 6),
        ("shared", "Dense", (8, 8, 6), 36, 2 * 8 * 8 * 36),
        ("shared", "Dense", (8, 8, 6), 0, 2 * 8 * 8 * 36),
        ("", "Odd", (8, 8, 6), 6, 0),
    ]
    assert table.parameters == 80 + 400 + 390 + 36 + 6


def test_nothing_is_compiled():
    events = []

    def listen(event, duration, **_):
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        models.describe(models.create("resnet18", num_classes=11), (40, 40, 3))
        assert not [event for event in events if "backend_compile" in event]
        jax.jit(lambda x: x + 11.5)(1.0)
        assert [event for event in events if "backend_compile" in event]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
