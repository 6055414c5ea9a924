"""Set before JAX starts: 8 devices on the CPU, strict ranks, warnings are errors, compiled programs are kept."""

import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of the tests' time: LLVM's second and third level would take a sixth more of it.
os.environ["XLA_FLAGS"] = " ".join(
    (os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=1")
)

import jax
import pytest

from cnn_jax import runtime, training
from cnn_jax.files import cache_folder

TESTS = Path(__file__).parent
# Of two processes that share the folder, one could read a program that the other has written by half.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and (folder := cache_folder()):
    os.environ["CNN_JAX_CACHE"] = str(folder / worker)
runtime.configure()
assert jax.device_count() == 8  # they start here, before a test can change the environment
jax.config.update("jax_numpy_rank_promotion", "raise")

if find_spec("torch") is None:
    # `make parity` installs the peers, and finds no tests, which is an error, where it cannot.
    collect_ignore_glob = ["*/*_peers.py"]


def pytest_collection_modifyitems(items):
    """The longest test comes first, so that it is not alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture(scope="module", autouse=True)
def _optimised(request):
    """Only programs that run for a while, or that are compared with other libraries', are optimised by LLVM.

    In the other files compiling is most of the time. XLA's own passes, which decide what is computed, always run.
    """
    runs = {"experiments", "training", "test_readme.py"} & set(request.path.relative_to(TESTS).parts)
    jax.config.update("jax_disable_most_optimizations", not (runs or request.path.stem.endswith("_peers")))


@pytest.fixture(scope="module", autouse=True)
def _one_device(request):
    """Scripts run on one device, as their users have it who have no accelerator; over eight, compiling takes longer.

    That eight give the same is tested in training, and of a whole script in test_classify.
    """
    scripts = {"experiments", "test_readme.py"} & set(request.path.relative_to(TESTS).parts)
    if not scripts or request.path.name == "test_classify.py":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        one = partial(training.parallel, devices=jax.devices()[:1])
        patch.setattr(training, "parallel", one)
        patch.setattr(training.loop, "parallel", one)
        yield


@pytest.fixture
def key():
    return jax.random.key(0)
