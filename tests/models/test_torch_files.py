"""The reader, on files written here by the formats' own rules, without PyTorch."""

import collections
import io
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from cnn_jax.errors import InputError
from cnn_jax.models.torch_files import read_tensors

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}
STORAGES["complex64"] = "ComplexFloatStorage"


class Global:
    """Pickled as a reference to `module.name`, whether that exists or not."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as the call of a function by its name."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return Global(*self.function.rsplit(".", 1)), self.args


class Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


class Pickler(pickle._Pickler):
    """The Python pickler, which can be told to write names that cannot be imported."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_name(self, item):
        self.write(b"c" + f"{item.module}\n{item.name}\n".encode())
        self.memoize(item)

    dispatch[Global] = save_name

    def persistent_id(self, item):
        if isinstance(item, Storage):
            self.used[item.key] = item
            kind = Global("torch", STORAGES[item.array.dtype.name])
            return ("storage", kind, item.key, "cpu", item.array.size, *self.legacy_view)
        return None


# `pickle` refuses to reduce to what is not callable.
Global.__call__ = lambda self: None


def pickled(tree, legacy=False):
    """The bytes, and the storages that they refer to."""
    file = io.BytesIO()
    pickler = Pickler(file, protocol=2)
    pickler.legacy_view = (None,) if legacy else ()
    pickler.used = {}
    pickler.dump(tree)
    return file.getvalue(), pickler.used


def tensor(storage, shape=None, strides=None, offset=0):
    shape = storage.array.shape if shape is None else shape
    strides = (
        tuple(stride // storage.array.itemsize for stride in storage.array.strides) if strides is None else strides
    )
    return Call(
        "torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, Call("collections.OrderedDict")
    )


def zipped(tree, root="archive"):
    data, used = pickled(tree)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{root}/data.pkl", data)
        archive.writestr(f"{root}/byteorder", "little")
        for key, storage in used.items():
            archive.writestr(f"{root}/data/{key}", storage.array.tobytes())
    return file.getvalue()


def legacy(tree):
    data, used = pickled(tree, legacy=True)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickled(item)[0] for item in (0x1950A86A20F9469CFC6C, 1001, system)] + [data, pickled(list(used))[0]]
    parts += [struct.pack("<q", storage.array.size) + storage.array.tobytes() for storage in used.values()]
    return b"".join(parts)


FORMATS = {"zip": zipped, "legacy": legacy}

numbers = Storage("0", np.arange(24, dtype=np.float32))
small = {name: Storage(str(i), np.arange(4).astype(name)) for i, name in enumerate(["float16", "bfloat16", "int64"], 1)}


@pytest.fixture(params=FORMATS)
def write(request, tmp_path):
    def write(tree, damage=lambda data: data):
        path = tmp_path / "weights.pth"
        path.write_bytes(damage(FORMATS[request.param](tree)))
        return path

    return write


def test_views_types_and_parameters(write):
    tree = collections.OrderedDict(
        whole=tensor(numbers),
        transposed=tensor(numbers, (6, 4), (1, 6)),
        part=tensor(numbers, (2, 3), (6, 2), offset=7),
        scalar=tensor(numbers, (), (), offset=5),
        expanded=tensor(numbers, (3, 2), (0, 1)),
        empty=tensor(numbers, (0, 3), (3, 1), offset=24),
        parameter=Call("torch._utils._rebuild_parameter", tensor(numbers), True, Call("collections.OrderedDict")),
        **{name: tensor(storage) for name, storage in small.items()},
    )
    tensors = read_tensors(write(tree))
    assert list(tensors) == list(tree)
    whole = np.arange(24, dtype=np.float32)
    expected = {
        "whole": whole,
        "transposed": whole.reshape(4, 6).T,
        "part": [[7, 9, 11], [13, 15, 17]],
        "scalar": 5,
        "expanded": [[0, 1]] * 3,
        "empty": np.zeros((0, 3)),
        "parameter": whole,
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value)
        assert tensors[name].dtype == np.float32
    for name in small:
        np.testing.assert_array_equal(tensors[name], np.arange(4).astype(name))
        assert tensors[name].dtype == np.dtype(name)


def test_checkpoints_are_unwrapped_and_prefixes_removed(write):
    state = {"module.conv.weight": tensor(numbers), "module.conv.bias": tensor(small["int64"])}
    for key in ("state_dict", "model"):
        tree = {
            "epoch": 3,
            "best": 0.5,
            key: state,
            "optimizer": {"state": {0: {"step": tensor(numbers)}}, "lr": [1e-3]},
        }
        assert list(read_tensors(write(tree))) == ["conv.weight", "conv.bias"]


def test_code_in_a_pickle_is_refused_and_does_not_run(write, tmp_path):
    trace = tmp_path / "ran"
    for function, argument in [
        ("os.system", f"touch {trace}"),
        ("posix.system", f"touch {trace}"),
        ("builtins.exec", f"open({str(trace)!r}, 'w')"),
        ("builtins.eval", f"open({str(trace)!r}, 'w')"),
        ("torch.load", str(trace)),
    ]:
        with pytest.raises(InputError, match=f"it holds a pickled {function}, which is not loaded because"):
            read_tensors(write({"weight": tensor(numbers), "evil": Call(function, argument)}))
    # The same file does run it where nothing forbids that.
    pickle.loads(pickled(Call("posix.system", f"touch {trace}"))[0])
    assert trace.exists()


@pytest.mark.parametrize(
    "beyond",
    [
        {"shape": (25,), "strides": (1,)},
        {"shape": (2,), "strides": (24,)},
        {"shape": (1,), "strides": (1,), "offset": 24},
        {"shape": (2,), "strides": (-1,), "offset": 1},
        {"shape": (1,), "strides": (1,), "offset": -1},
        {"shape": (-2, -2), "strides": (1, 1)},
    ],
)
def test_no_tensor_reaches_beyond_its_storage(write, beyond):
    with pytest.raises(InputError, match=r"damaged.*beyond its storage"):
        read_tensors(write({"weight": tensor(numbers, **beyond)}))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_taken_off(write, prefix):
    """Of `DataParallel`, of `torch.compile`, and of either around the other."""
    names = {"module.weight", "_orig_mod.bias", "x.module.weight"}  # of a network that has such modules itself
    assert set(read_tensors(write({prefix + name: tensor(numbers) for name in names}))) == names


def test_types_that_are_not_read_are_said(write):
    unknown = Storage("0", np.zeros(4, np.complex64))
    with pytest.raises(InputError, match=r"it holds tensors of type ComplexFloat, which is not read$"):
        read_tensors(write({"weight": tensor(unknown)}))


def test_damage_is_noticed(write):
    tree = {"weight": tensor(numbers)}
    length = len(write(tree).read_bytes())
    for cut in (9, length // 3, length - 1):
        with pytest.raises(InputError, match="is damaged"):
            read_tensors(write(tree, damage=lambda data, cut=cut: data[:cut]))


def test_a_flipped_byte_in_a_zip_is_noticed(tmp_path):
    data = bytearray(zipped({"weight": tensor(numbers)}))
    data[data.index(numbers.array.tobytes()) + 6] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    with pytest.raises(InputError, match=r"damaged.*CRC"):
        read_tensors(tmp_path / "flipped.pt")


def test_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(2, dtype=np.int64)}, path)
    tensors = read_tensors(path)
    np.testing.assert_array_equal(tensors["a"], [[0, 1, 2], [3, 4, 5]])
    assert tensors["b"].dtype == np.int64
    header = b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + np.array([1.5, -2], ml_dtypes.bfloat16).tobytes())
    np.testing.assert_array_equal(read_tensors(path)["x"].astype(np.float32), [1.5, -2])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged"):
        read_tensors(path)


def test_foreign_files(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(InputError, match=r"cannot read .*weights.pth: No such file"):
        read_tensors(path)
    for content, sentence in [
        (b"", "neither a file of torch.save nor one of safetensors"),
        (b"\x89PNG\r\n\x1a\n and more", "neither a file of torch.save nor one of safetensors"),
        (pickle.dumps([1, 2]), "a pickle, but not one of torch.save"),
        (zipped([tensor(numbers)]), "it holds no state dict"),
        (zipped({"epoch": 3}), "it holds no state dict"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=sentence):
            read_tensors(path)
    np.savez(path.with_suffix(".npz"), a=np.ones(2))
    with pytest.raises(InputError, match=r"a zip file, but not one of torch.save"):
        read_tensors(path.with_suffix(".npz"))
