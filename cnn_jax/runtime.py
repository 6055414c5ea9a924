"""Settings of the process that make JAX start and run fast. Scripts call `configure` first; a library user may."""

import atexit
import ctypes
import gc
import os
import threading
import time
from functools import cache
from pathlib import Path

from cnn_jax.errors import InputError, unknown
from cnn_jax.files import cache_folder

PLATFORMS = ("cpu", "gpu", "tpu")


def configure(*, platform: str | None = None) -> None:
    """To be called before JAX first touches a device; later it has no effect on what has started.

    - Compiled programs are kept in a folder for the next start: `$CNN_JAX_CACHE`, or `~/.cache/cnn_jax`. An empty
      `$CNN_JAX_CACHE` keeps none. JAX's own `$JAX_COMPILATION_CACHE_DIR` comes first.
    - On a CPU, memory that is freed stays with the process. XLA takes and gives back up to gigabytes each step, and the
      page faults of that cost as much as the arithmetic (SimpleCNN, batch 128: 44 ms a step without, 28 with;
      MobileNetV2, 8 images: 345 ms as long as what is larger than 64 MiB went back, 250 since). For this all threads
      share one arena of malloc's, which makes the compiler a quarter slower; `$MALLOC_ARENA_MAX` comes first. Malloc
      does not always find what was freed, so that a process comes to hold two to three times what a step needs; what
      is free goes back once it holds half of the machine's memory.
    - On a virtual machine, XLA's threads on the CPU wake on a core each. Left alone, Linux there wakes those that slept
      for a tenth of a second on one core, and takes 50 ms to part them (on 2 cores, MobileNetV2's forward pass every
      fifth of a second: 47 ms so, 31 since).
    - What Python has loaded so far it does not look through again for objects to free, and before it ends for none at
      all: JAX's are so many that this takes 0.1 s of the first step and 0.3 s at the end.
    - On a CPU, YNNPACK multiplies matrices, and convolutions are left to XLA's own kernels: by jaxlib's default it has
      both, and its convolutions take half as long again (48 ms a step for 31; without its products, 3 % more).

    Args:
        platform: `cpu`, `gpu` or `tpu`: JAX runs there, or it is an `InputError`. None takes the best there is.
    """
    _tune_cpu()
    atexit.register(gc.freeze)
    import jax

    _wake_apart()
    gc.freeze()
    if platform:
        if platform not in PLATFORMS:
            raise unknown("platform", platform, PLATFORMS)
        jax.config.update("jax_platforms", {"gpu": "cuda,rocm"}.get(platform, platform))
        try:
            found = jax.default_backend()
        except RuntimeError as error:
            reason = str(error).splitlines()[0].split(" (set ")[0].rstrip(".")  # without advice on variables
            raise InputError(
                f"no {platform} can be used: {reason}. Leave the platform out to take the best there is"
            ) from error
        if found != platform:
            raise InputError(f"no {platform} can be used: JAX found only {found}")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (folder := cache_folder()):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _tune_cpu() -> None:
    from jax import __version__

    flag = "--xla_cpu_experimental_ynn_fusion_type"
    flags = os.environ.get("XLA_FLAGS", "")
    # XLA ends the process at a flag that it does not know, so only versions that were tried get it.
    if flag not in flags and tuple(map(int, __version__.split(".")[:2])) <= (0, 12):
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=individual_dot".strip()
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX
    mallopt(mmap_max, 0)
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(arena_max, 1)  # those of other threads are of 64 MiB, and what is larger would go back all the same
    mallopt(trim_threshold, -1)
    _watch(_machine_memory() // 2)


@cache
def _watch(most: int) -> None:
    """From now on gives free memory back to the system whenever the process holds more than so many bytes."""

    def watch():
        while True:
            time.sleep(1)
            if _held() > most:
                ctypes.CDLL(None).malloc_trim(0)

    threading.Thread(target=watch, daemon=True).start()


@cache
def _wake_apart() -> None:
    """While XLA's threads on the CPU sleep, each is bound to a core of its own; once they work they are free again.

    Bound for good, they are slower beside another program: two trainings on 2 cores took 31 ms a step for 24.
    """

    def watch():
        workers, spent, bound = [], 0.0, False
        while True:
            time.sleep(0.05 if workers else 0.5)
            cores = sorted(os.sched_getaffinity(0))
            try:
                workers = workers or _workers()
                if len(workers) != len(cores):
                    workers = []
                    continue
                before, spent = spent, sum(map(_worked, workers))
                asleep = spent == before
                if bound != asleep:
                    for worker, core in zip(workers, cores, strict=True):
                        os.sched_setaffinity(worker, {core} if asleep else cores)
                    bound = asleep
            except OSError:  # a thread has ended, or a core was taken from the process
                workers, bound = [], False

    if _is_virtual():
        threading.Thread(target=watch, daemon=True).start()


def _is_virtual() -> bool:
    try:
        with open("/proc/cpuinfo") as file:
            return "hypervisor" in file.read(4096)  # among what the first core can do
    except OSError:  # not Linux
        return False


def _workers() -> list[int]:
    """Linux's numbers of XLA's threads on the CPU."""
    tasks = Path("/proc/self/task").iterdir()
    return sorted(int(task.name) for task in tasks if (task / "comm").read_text() == "tf_XLAEigen\n")


def _worked(thread: int) -> float:
    """Seconds that a thread has had of a core, by its own clock: see clock_getcpuclockid(3)."""
    return time.clock_gettime(~thread << 3 | 6)


def _held() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _machine_memory() -> int:
    """Bytes, of the machine or of the container."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return machine
