"""What `configure` sets is the process's own, so that most of these tests start one."""

import json
import os
import platform
import stat
import subprocess
import sys

import pytest

from cnn_jax import runtime
from cnn_jax.errors import InputError
from cnn_jax.files import cache_folder


def start(code: str, **variables: str | None) -> subprocess.CompletedProcess:
    """Python code in a process of its own, with these environment variables (None: without)."""
    environment = {name: value for name, value in os.environ.items() if variables.get(name, "") is not None}
    environment |= {name: value for name, value in variables.items() if value is not None}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


def mode(folder) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def test_compiled_programs_are_kept_where_the_user_says(tmp_path):
    folder = tmp_path / "some" / "cache"
    code = (
        "import jax; from cnn_jax import runtime; runtime.configure();"
        "print(jax.config.jax_compilation_cache_dir, jax.jit(lambda x: x + 2)(1))"
    )
    done = start(code, CNN_JAX_CACHE=str(folder), JAX_COMPILATION_CACHE_DIR=None)
    assert done.stdout == f"{folder} 3\n", done.stderr
    assert mode(folder) == 0o700
    assert list(folder.iterdir()) != []  # even what compiles at once is kept


LARGE = """
import jax, jax.numpy as jnp
large = jax.jit(lambda x: jnp.sin(x[:, None] + x) @ x)  # holds 67 MiB
x = jnp.arange(4200.0)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")


@glibc
def test_memory_that_is_freed_stays():
    code = f"""
import resource, statistics
from cnn_jax import runtime
runtime.configure(platform="cpu")
{LARGE}
faults = []
for _ in range(60):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    large(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median_high(faults[-20:]))  # at first some find no place in what has been freed
"""
    done = start(code, CNN_JAX_CACHE="", MALLOC_ARENA_MAX=None)
    pages = 4200 * 4200 * 4 / os.sysconf("SC_PAGE_SIZE")
    assert int(done.stdout) < pages / 4, done.stderr


@glibc
def test_free_memory_goes_back_where_there_is_little():
    code = f"""
import time
from cnn_jax import runtime
runtime._machine_memory = lambda: 0
runtime.configure(platform="cpu")
{LARGE}
for _ in range(5):
    large(x).block_until_ready()
held = runtime._held()
time.sleep(3)
print(held - runtime._held())
"""
    done = start(code, CNN_JAX_CACHE="", MALLOC_ARENA_MAX=None)
    assert int(done.stdout) > 60 * 2**20, done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="of Linux")
@pytest.mark.parametrize("virtual", [True, False])
def test_on_a_virtual_machine_sleeping_threads_are_bound_to_cores_of_their_own(virtual):
    code = f"""
import json, os, time
from cnn_jax import runtime
runtime._is_virtual = lambda: {virtual}
runtime.configure(platform="cpu")
import jax, jax.numpy as jnp

def affinities():
    return sorted(sorted(os.sched_getaffinity(thread)) for thread in runtime._workers())

x = jnp.ones((1000, 1000))
products = jax.jit(lambda x: jax.lax.fori_loop(0, 10**6, lambda i, x: x @ x / 1000, x)).lower(x).compile()
time.sleep(2)
asleep = affinities()
products(x)  # takes minutes; nobody waits
time.sleep(1)
print(json.dumps([sorted(os.sched_getaffinity(0)), asleep, affinities()]), flush=True)
os._exit(0)
"""
    done = start(code, CNN_JAX_CACHE="", XLA_FLAGS="", NPROC=None)
    assert done.returncode == 0, done.stderr
    cores, asleep, at_work = json.loads(done.stdout)
    assert asleep == ([[core] for core in cores] if virtual else [cores] * len(cores))
    assert at_work == [cores] * len(cores)


def test_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CNN_JAX_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "cnn_jax"
    assert mode(tmp_path / ".cache" / "cnn_jax") == 0o700
    monkeypatch.setenv("CNN_JAX_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    assert mode(tmp_path / "mine") == 0o700
    monkeypatch.setenv("CNN_JAX_CACHE", "")
    assert cache_folder() is None


def test_a_home_that_cannot_be_written_keeps_none_and_a_chosen_folder_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("CNN_JAX_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert cache_folder() is None
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"file/cache cannot be made: Not a directory\. Set CNN_JAX_CACHE to another$"):
        cache_folder()


@pytest.mark.parametrize("wrong", [0o720, 0o702, 0o777])
def test_a_cache_that_others_can_write_is_refused(tmp_path, monkeypatch, wrong):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(wrong)
    monkeypatch.setenv("CNN_JAX_CACHE", str(folder))
    with pytest.raises(InputError, match="can be written by others: run chmod 700 on it, or set CNN_JAX_CACHE"):
        cache_folder()
    folder.chmod(0o755)  # who can only read is no danger
    assert cache_folder() == folder


def test_a_cache_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(InputError, match="can be written by others"):
        cache_folder()


def test_jaxs_own_variable_comes_first_and_an_empty_one_of_ours_keeps_none(tmp_path):
    code = "import jax; from cnn_jax import runtime; runtime.configure(); print(jax.config.jax_compilation_cache_dir)"
    done = start(code, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "jax"), CNN_JAX_CACHE=str(tmp_path / "ours"))
    assert done.stdout == f"{tmp_path / 'jax'}\n", done.stderr
    assert not (tmp_path / "ours").exists()
    assert start(code, JAX_COMPILATION_CACHE_DIR=None, CNN_JAX_CACHE="").stdout == "None\n"


def test_platforms():
    with pytest.raises(InputError, match=r"^unknown platform 'cpuu': did you mean 'cpu'\? Choices: cpu, gpu, tpu$"):
        runtime.configure(platform="cpuu")


def test_a_platform_that_is_not_there_is_one_sentence():
    code = """
from cnn_jax import runtime
from cnn_jax.errors import InputError
for platform in ("cpu", "gpu"):
    try:
        runtime.configure(platform=platform)
        import jax
        print(jax.default_backend())
    except InputError as error:
        print(error)
    import jax
    jax.extend.backend.clear_backends()
"""
    code = code.replace("import jax\n    jax.extend", "import jax.extend\n    jax.extend")
    # No device is visible to the process, wherever the tests run.
    done = start(code, CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="", JAX_PLATFORMS=None)
    found, sentence = done.stdout.splitlines()
    assert found == "cpu"
    assert sentence.startswith("no gpu can be used: ")
    assert sentence.endswith(". Leave the platform out to take the best there is")


def test_convolutions_are_left_to_xla_unless_the_user_chose():
    code = "import os; from cnn_jax import runtime; runtime.configure(); print(os.environ['XLA_FLAGS'])"
    flag = "--xla_cpu_experimental_ynn_fusion_type"
    assert start(code, XLA_FLAGS=None).stdout == f"{flag}=individual_dot\n"
    assert start(code, XLA_FLAGS="--xla_cpu_enable_fast_math=false").stdout.split()[1] == f"{flag}=individual_dot"
    assert start(code, XLA_FLAGS=f"{flag}=dot").stdout == f"{flag}=dot\n"
