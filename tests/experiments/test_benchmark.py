"""The benchmark measures what it says, in little."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.errors import InputError
from cnn_jax.models.convolution import convolution
from experiments import benchmark
from experiments.peers import contest, ours, work


def test_ratios_are_the_peers_time_over_ours():
    found = benchmark.compared({"ours": [1.0, 2.0, 30.0], "torch_eager": [3.0, 3.0, 90.0], "torch_compile": [1, 1, 1]})
    assert found == {
        "ours_ms": 2, "torch_eager_ms": 3, "torch_compile_ms": 1, "ratio_eager": 1.5, "ratio_compile": 0.5
    }  # fmt: skip


def last_line(capsys, *, batch_size=16, **options):
    benchmark.main(benchmark.Config(tiny=True, batch_size=batch_size, **options))
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_alone(capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    found = last_line(capsys)
    step = found["simple_cnn_step"]
    assert set(found) == {"simple_cnn_step", "program", "first_step", "machine"}
    assert 0 < step["ours_ms"] < 1e4
    np.testing.assert_allclose(step["images_per_second"], 16_000 / step["ours_ms"])
    flops = 3 * 8_482_304 * 16
    np.testing.assert_allclose(step["share_of_peak"], flops / (step["ours_ms"] * 1e6 * step["gflops_peak"]))
    assert step["compilations"] == 1
    assert not any(name.startswith(("torch", "ratio")) for name in step)


@pytest.mark.slow
def test_the_number_of_objects_compiles_nothing_anew(capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    objects = work.random_data("fcos_small", 16, 64)["objects"].sum(1)
    assert set(objects) == set(range(9))
    found = last_line(capsys, batch_size=4, task="detect", models=("fcos_small",))
    assert set(found) == {"fcos_small_step", "machine"}
    assert found["fcos_small_step"]["compilations"] == 1


class Fixed:
    """A contestant that takes so many milliseconds for a forward pass, and three times as many for a step."""

    def __init__(self, module, **settings):
        self.ms = 10 if module == "ours" else 30 if settings["compiled"] else 20
        self.about = {"flops": 10**9, "threads": None if module == "ours" else 2}
        assert settings["model"] == "mobilenet_v2"
        assert settings["batch_size"] == 4

    def ask(self, command):
        what, *times = command.split()
        if what == "compilations":
            return 1
        return (
            {"forward": self.ms, "steps": 3 * self.ms, "matmul": 2 * 2048**3 / 1e9}[what] / 1000 * int([*times, 1][0])
        )

    def close(self):
        pass


def test_what_another_left_in_the_caches_does_not_count():
    last = []

    class Cold:
        def ask(self, command):
            cold = last != [self, command]
            last[:] = self, command
            return 9.0 if cold else 0.5

    times, product = contest.take_turns({"a": Cold(), "b": Cold()}, ("forward", "steps"), 5, 3, matmul=("b",))
    assert times == {command: {"a": [100.0] * 3, "b": [100.0] * 3} for command in ("forward", "steps")}
    assert product == 9.0


def test_the_zoo_is_measured_in_both_directions(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "Contestant", Fixed)
    monkeypatch.setattr(benchmark, "require", lambda *names: None)
    found = last_line(capsys, batch_size=4, task="zoo", models=("mobilenet_v2",), peer="torch")
    assert set(found) == {"mobilenet_v2_forward", "mobilenet_v2_step", "machine"}
    for passes, of in ((1, found["mobilenet_v2_forward"]), (3, found["mobilenet_v2_step"])):
        assert of["ours_ms"] == pytest.approx(10 * passes)
        assert [of[f"ratio_{name}"] for name in ("eager", "eager_bf16", "compile")] == pytest.approx([2, 2, 3])
        assert of["images_per_second"] == pytest.approx(400 / passes)
        # A product takes 2·2048³ FLOPs and here as many nanoseconds: 1 GFLOP/ms; the network's 4 GFLOPs take 10 ms.
        assert of["gflops_peak"] == pytest.approx(1000)
        assert of["share_of_peak"] == pytest.approx(0.4)


def test_ours_is_measured_beside_plain_layers(capsys, monkeypatch):
    class Plain(Fixed):
        def __init__(self, module, *, plain=False, **settings):
            super().__init__(module, **settings)
            self.ms *= 5 if plain else 1

    monkeypatch.setattr(benchmark, "Contestant", Plain)
    found = last_line(capsys, batch_size=4, task="zoo", models=("mobilenet_v2",), peer="linen")
    for measured in ("forward", "step"):
        assert found[f"mobilenet_v2_{measured}"]["ratio_linen"] == pytest.approx(5)


@pytest.mark.parametrize("plain", [False, True])
def test_plain_layers_are_one_operation_each(monkeypatch, plain):
    """Of a depthwise convolution, which ours writes as sums."""
    x, programs = jnp.ones((1, 8, 8, 8)), []

    def measured(about, **commands):
        programs.append(str(jax.make_jaxpr(lambda x: convolution(x, jnp.ones((3, 3, 1, 8)), None, groups=8))(x)))

    monkeypatch.setattr(ours, "serve", measured)
    monkeypatch.setattr("cnn_jax.runtime.configure", lambda: None)
    ours.work(model="simple_cnn", batch_size=2, side=28, precision="float32", images=8, matmul_size=8, plain=plain)
    assert ("conv_general_dilated" in programs[0]) == plain


@pytest.mark.parametrize("flag", ["rounds", "steps", "epochs", "batch_size"])
def test_nothing_is_measured_of_nothing(flag):
    with pytest.raises(InputError, match=f"--{flag.replace('_', '-')} is 0: it must be 1 or more"):
        benchmark.main(benchmark.Config(**{flag: 0}))


def test_small_networks_are_measured_in_three_processes(capsys, monkeypatch):
    started = []

    class Process:
        about = {"flops": 10**6}  # noqa: RUF012

        def __init__(self, module, **settings):
            started.append(module)
            self.ms = {1: 5, 2: 80, 3: 10}[len(started)]

        def ask(self, command):
            what, *times = command.split()
            return {"compilations": 1, "matmul": self.ms, "steps": self.ms / 1000 * int([*times, 1][0])}[what]

        def close(self):
            pass

    monkeypatch.setattr(benchmark, "Contestant", Process)
    found = benchmark.steps("simple_cnn", benchmark.Config(), 2, gpu=False)["simple_cnn_step"]
    assert started == ["ours"] * 3
    assert found["ours_ms"] == pytest.approx(10)
    assert found["gflops_peak"] == pytest.approx(2 * 2048**3 / 5 / 1e9)


def test_a_model_of_another_task():
    with pytest.raises(InputError, match=r"unknown model to segment 'resnet18'.*deeplabv3_resnet50"):
        benchmark.main(benchmark.Config(task="segment", models=("resnet18",)))


@pytest.mark.peers
@pytest.mark.slow
def test_beside_torch(capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    found = last_line(capsys, peer="torch")
    step = found["simple_cnn_step"]
    for name in ("eager", "eager_bf16", "compile"):
        np.testing.assert_allclose(step[f"ratio_{name}"], step[f"torch_{name}_ms"] / step["ours_ms"])
    assert found["program"]["torch_eager_ms"] > 0


@pytest.mark.peers
@pytest.mark.slow
def test_beside_torchvision(capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    found = last_line(capsys, batch_size=2, task="detect", peer="torch", models=("fcos_resnet50_fpn",))
    step = found["fcos_resnet50_fpn_step"]
    assert step["compilations"] == 1
    for name in ("eager", "eager_bf16"):
        np.testing.assert_allclose(step[f"ratio_{name}"], step[f"torch_{name}_ms"] / step["ours_ms"])
