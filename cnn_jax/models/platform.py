"""For which platform a network is written down: layers arrange the same arithmetic in the way that is fast there."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_CHOSEN = ContextVar("platform", default=None)


def on_cpu() -> bool:
    """Whether layers are to take the forms that are fast on a CPU; asked while they are traced."""
    return _platform() == "cpu"


def on_gpu() -> bool:
    """Whether layers are to take the forms that are fast on a GPU; asked while they are traced."""
    return _platform() == "gpu"


def _platform() -> str:
    return _CHOSEN.get() or jax.default_backend()


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Networks that are traced inside are written as they are on that platform, wherever they run later.

        with models.traced_for("tpu"):
            jaxpr = jax.make_jaxpr(model.apply)(variables, images)

    For "tpu" each convolution then is one operation of XLA's, which tools that read programs know: to count its FLOPs,
    or to export it. A function that `jax.jit` has traced before keeps its form: give it another.
    """
    before = _CHOSEN.set(platform)
    try:
        yield
    finally:
        _CHOSEN.reset(before)
