"""Data parallelism: one step, over one device or many, by sharded `jit` or by `pmap`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cnn_jax.errors import InputError, unknown

PyTree = Any
MODES = ("jit", "pmap")


@dataclass(frozen=True)
class Parallel:
    """How functions of a state and a batch are laid over the devices. Make one with `parallel(mode)`.

    Under `jit` arrays are global: the state is replicated, the batch is split along its first axis. Under `pmap` every
    array has a leading axis of devices. Nothing outside this class knows which.
    """

    mode: str
    mesh: Mesh

    @property
    def devices(self) -> int:
        return self.mesh.size

    def replicate(self, tree: PyTree) -> PyTree:
        """Host arrays, or arrays on one device, onto every device."""
        if self.mode == "jit":
            return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))
        by_device = NamedSharding(self.mesh, PartitionSpec("data"))
        stack = jax.jit(
            lambda tree: jax.tree.map(lambda x: jax.numpy.broadcast_to(x, (self.devices, *x.shape)), tree),
            out_shardings=by_device,
        )
        return stack(jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec())))

    def split(self, tree: PyTree, *, axis: int = 0) -> PyTree:
        """Host arrays whose `axis` runs over the examples of a batch, split over the devices."""
        spec = PartitionSpec(*[None] * axis, "data")
        if self.mode == "jit":
            return jax.device_put(tree, NamedSharding(self.mesh, spec))
        spread = jax.tree.map(lambda x: np.stack(np.split(np.asarray(x), self.devices, axis)), tree)
        return jax.device_put(spread, NamedSharding(self.mesh, PartitionSpec("data")))

    def compile(
        self, build: Callable[[str | None], Callable], *, split: tuple[bool, ...], donate: int | None
    ) -> Callable:
        """`build(axis_name)`, compiled over the devices.

        Args:
            build: gives the function of one device's arrays under `pmap`, where the axis has a name, and of the global
                arrays under `jit`, where the name is None.
            split: for each argument, whether it lies on the devices (by `replicate` or `split`); the others are the
                same everywhere, such as keys.
            donate: index of an argument whose memory the result may take.
        """
        donated = () if donate is None else donate
        if self.mode == "jit":
            everywhere = NamedSharding(self.mesh, PartitionSpec())
            compiled = jax.jit(build(None), out_shardings=everywhere, donate_argnums=donated)
        else:
            axes = tuple(0 if on_devices else None for on_devices in split)
            devices = list(self.mesh.devices.flat)
            compiled = jax.pmap(build("data"), "data", in_axes=axes, donate_argnums=donated, devices=devices)
        if self.devices == 1 or self.mesh.devices.flat[0].platform != "cpu":
            return compiled
        # The devices of a CPU have a thread each between them. Programs that wait for the one before take them from it,
        # and where it needs all at once, to sum over the devices, XLA waits for 40 seconds and ends the process.
        return lambda *args: jax.block_until_ready(compiled(*args))

    def one(self, tree: PyTree) -> PyTree:
        """A replicated tree as one copy."""
        if self.mode == "jit":
            return tree
        # The first device's own: an index into the whole array would be a program on all devices, with a sum over them.
        return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)

    def parts(self, tree: PyTree) -> list[PyTree]:
        """A result with one entry an example, or a device, as host arrays: one tree, or one a device."""
        tree = jax.device_get(tree)
        if self.mode == "jit":
            return [tree]
        return [jax.tree.map(lambda x: x[i], tree) for i in range(self.devices)]  # noqa: B023

    def check(self, batch_size: int, *, accumulate: int = 1) -> None:
        """Raises `InputError` where a batch cannot be split evenly over the devices, in `accumulate` parts each."""
        if accumulate < 1:
            raise InputError(f"accumulate {accumulate}: it must be 1 or more")
        if batch_size < 1 or batch_size % (self.devices * accumulate):
            parts = f" times the {accumulate} parts of accumulation" if accumulate > 1 else ""
            raise InputError(
                f"batch size {batch_size}: it must be a multiple of the number of devices, {self.devices}{parts}"
            )


def parallel(mode: str = "jit", *, devices: list | None = None) -> Parallel:
    """Data parallelism over `devices` (all that JAX sees by default), by `jit` over a mesh or by `pmap`."""
    if mode not in MODES:
        raise unknown("way of parallelism", mode, MODES)
    devices = jax.devices() if devices is None else devices
    return Parallel(mode, jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices))
