"""What networks cost: our counts beside published ones for every member of the zoo, and the command."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import fails, succeeds

from cnn_jax import analysis, models
from cnn_jax.reporting import cost as report
from experiments import cost, zoo
from experiments.peers.published import PUBLISHED

# Nobody else has these networks, or has published their FLOPs.
OURS = {"simple_cnn", "resnet9", "wide_resnet16_4", "unet", "unet_small", "unet_guided", "fcos_small"}
OURS |= {"deeplabv3_resnet152"}
OURS |= {f"fcos_resnet{depth}_fpn" for depth in (18, 34, 101, 152)}
OURS |= {f"unet_resnet{depth}" for depth in (18, 34, 50, 101, 152)}


def test_every_network_is_published_or_ours():
    assert set(models.names()) - set(PUBLISHED) == OURS


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_flops_and_parameters_are_the_published_ones(name):
    """By the formula of each layer, and as counted in the program."""
    of, source = zoo.member(name), PUBLISHED[name].source
    table = models.describe(of.model, of.image_shape)
    with models.traced_for("tpu"):
        images = jax.ShapeDtypeStruct((1, *of.image_shape), jnp.float32)
        program = analysis.cost.count(of.model.apply, of.variables, images)
    layers = {f"{type(of.model).__name__}/{layer.name}" for layer in table.layers}
    counted = sum(scope.forward for scope_name, scope in program.scopes.items() if scope_name in layers)
    # JAX resizes the map of a segmenter by matrix products, between the layers; nobody publishes these.
    assert (program.forward > counted) == name.startswith("deeplabv3")
    assert program.forward <= 1.01 * counted
    assert program.uncounted == ()
    # Of all sources only timm counts the norms, which the Lite networks are published by.
    norms = sum(np.prod(layer.output_shape) for layer in table.layers if layer.type.endswith("Norm"))
    for flops in (table.flops, counted):
        multiply_adds = (flops + 4 * norms * source.norms) / 2e9
        assert multiply_adds == pytest.approx(PUBLISHED[name].multiply_adds, abs=source.multiply_adds)
        assert multiply_adds == pytest.approx(PUBLISHED[name].multiply_adds, rel=0.01)
    parameters = table.parameters - (53_120 if name == "fcos_resnet50_fpn" else 0)  # see `PUBLISHED`
    assert parameters == pytest.approx(PUBLISHED[name].parameters, abs=source.parameters - 1)


# Plain, grouped and depthwise convolutions: what kernels do at their places, and the program of both directions.
@pytest.mark.parametrize(
    ("name", "side"),
    [("simple_cnn", 28), ("resnext50_32x4d", 96), ("efficientnet_b0", 160), ("convnext_tiny", 224), ("fcos_small", 64)],
)
def test_the_program_agrees_with_the_layers(name, side):
    of = zoo.member(name, side=side)
    row, rows = zoo.counted(name, of)
    table = models.describe(of.model, of.image_shape)
    assert (row["flops"], row["uncounted"]) == (table.flops, "")
    # Each layer has two gradients but the first, whose input are the images.
    first = next(row for row in rows if row[4])
    assert row["train_flops"] == pytest.approx(3 * table.flops - first[4], rel=1e-3)
    assert sum(row[4] for row in rows) == row["flops"]
    assert sum(row[5] for row in rows) == row["train_flops"] - row["flops"]
    assert sum(row[7] for row in rows) == row["kept"] <= row["peak"]
    assert len(rows) == len({row[0] for row in rows})  # of a layer that runs for every level too
    assert all(kind and (flops > 0) == ("Conv" in kind or kind == "Dense") for _, kind, *_, flops, _, _, _ in rows[:-1])


class Whitened(nn.Module):
    """Of which a program does not tell all."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = x.reshape(-1, 4)
        return nn.Dense(2)(jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(x.T @ x), x.T).T)


def test_the_report_names_what_is_not_counted(tmp_path, capsys):
    model = Whitened()
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    known = zoo.member("simple_cnn", side=4)
    row, layers = zoo.counted("whitened", zoo.Member(model, "classify", 2, (4, 4, 1), variables, None))
    rows = [row, zoo.counted("simple_cnn", known)[0]]
    path = report.write(
        tmp_path, command="", networks=rows, layers={"whitened": layers}, notes=["Why."], peak=None, footer=""
    )
    sentence = "Not counted, because a program does not tell their work: whitened: cholesky, triangular_solve."
    assert sentence in path.read_text()
    assert sentence in capsys.readouterr().out


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_the_table_and_the_report(tmp_path):
    out = succeeds(cost, "--tiny", "--out", tmp_path / "cost")
    assert all(name in out for name in ("resnet18", "simple_cnn", "GFLOPs"))
    found = summary(tmp_path / "cost")
    assert found["simple_cnn_flops"] == models.describe(models.create("simple_cnn"), (32, 32, 1)).flops
    assert "simple_cnn_forward_ms" not in found
    report = (tmp_path / "cost" / "report.html").read_text()
    assert "stage4_block2/conv2" in report
    assert {path.name for path in (tmp_path / "cost" / "figures").iterdir()} == {"size.png", "memory.png"}


def test_measured_on_this_machine(tmp_path):
    out = succeeds(cost, "--tiny", "--time", "--models", "simple_cnn", "--image-size", 28, "--out", tmp_path / "cost")
    assert "Layers of simple_cnn" in out
    found = {name.removeprefix("simple_cnn_"): value for name, value in summary(tmp_path / "cost").items()}
    for prefix, what, flops in (("", "forward", found["flops"]), ("train_", "train", found["train_flops"])):
        assert found[f"{prefix}images_per_second"] == pytest.approx(1000 / found[f"{what}_ms_per_image"])
        assert found[f"{what}_ms"] == pytest.approx(found["batch_size"] * found[f"{what}_ms_per_image"])
        speed = flops * found[f"{prefix}images_per_second"]
        assert found[f"{prefix}share_of_peak"] == pytest.approx(speed / found["peak_flops_per_second"])
    # Parameters and two moments of Adam each, at the least.
    assert found["compiled"] > 3 * 4 * found["parameters"]
    assert (tmp_path / "cost" / "figures" / "train_time.png").exists()


def test_what_is_wrong_with_a_flag(tmp_path):
    assert fails(cost, "--models", "simple_cn").startswith("unknown model 'simple_cn': did you mean 'simple_cnn'?")
    assert fails(cost, "--time", "--rounds", 0) == "--rounds is 0: it must be 1 or more"
    assert fails(cost, "--image-size", 0) == "--image-size is 0: it must be 1 or more"
    small = ("--models", "simple_cnn", "mobilenet_v2", "--image-size", 16, "--out", tmp_path / "cost")
    assert fails(cost, *small) == "mobilenet: images of 16×16 are smaller than its stride of 32: use larger images"
    assert not (tmp_path / "cost").exists()
