"""The MNIST and CIFAR families from files written by hand in the layout of the published ones."""

import gzip
import http.server
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from cnn_jax import data
from cnn_jax.data import originals
from cnn_jax.errors import InputError

RNG = np.random.default_rng(0)


def idx(path, array):
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.fixture
def mnist_files(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    arrays = {}
    for split, prefix, count in (("train", "train", 20), ("test", "t10k", 10)):
        arrays[split] = RNG.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
        idx(files / f"{prefix}-images-idx3-ubyte.gz", arrays[split][0])
        idx(files / f"{prefix}-labels-idx1-ubyte.gz", arrays[split][1])
    return files, arrays


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_family(tmp_path, mnist_files, name):
    files, arrays = mnist_files
    path = data.prepare(name, data_dir=tmp_path / "data", files=files)
    assert path == tmp_path / "data" / name / "cnn_jax.npz"
    assert list(path.parent.iterdir()) == [path]
    d = data.load(name, data_dir=tmp_path / "data")
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(d, split)["image"][..., 0], arrays[split][0])
        np.testing.assert_array_equal(getattr(d, split)["label"], arrays[split][1])
    assert d.class_names[9] == ("9" if name == "mnist" else "Ankle boot")


class Python2Pickler(pickle._Pickler):
    """Writes strings as Python 2 did, in which CIFAR's files were made: as bytes without an encoding."""

    def save_string(self, string):
        raw = string.encode() if isinstance(string, str) else string
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(string)

    dispatch = pickle._Pickler.dispatch | {bytes: save_string, str: save_string}


def dumps(obj, python2):
    if not python2:
        return pickle.dumps(obj)
    buffer = io.BytesIO()
    Python2Pickler(buffer, 2).dump(obj)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_files(folder, coarse=False, python2=True):
    """An archive with 2 images a file; returns those of training and of testing as NHWC, and the labels."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [b"class %d" % i for i in range(100 if coarse else 10)]
    parts = ["train", "test"] if coarse else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    title, meta = ("cifar-100-python", "meta") if coarse else ("cifar-10-batches-py", "batches.meta")
    label_key = b"fine_labels" if coarse else b"labels"
    contents = {meta: {b"fine_label_names" if coarse else b"label_names": names, b"num_vis": 3072}, "readme.html": None}
    images, labels = [], []
    for i, part in enumerate(parts):
        image = RNG.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
        label = [2 * i % len(names), (2 * i + 1) % len(names)]
        planes = np.array([[x[..., c].ravel() for c in range(3)] for x in image]).reshape(2, 3072)
        contents[part] = {b"batch_label": b"x", b"coarse_labels": [0, 0], b"data": planes, label_key: label}
        images.append(image)
        labels += label
    with tarfile.open(folder / f"cifar-{100 if coarse else 10}-python.tar.gz", "w:gz") as tar:
        for name in reversed(contents):  # the true archive has no order either
            raw = b"<html>" if contents[name] is None else dumps(contents[name], python2)
            member = tarfile.TarInfo(f"{title}/{name}")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return np.concatenate(images[:-1]), images[-1], labels


@pytest.mark.parametrize("python2", [True, False])
@pytest.mark.parametrize("coarse", [True, False])
def test_cifar_family(tmp_path, coarse, python2):
    name = "cifar100" if coarse else "cifar10"
    train, test, labels = cifar_files(tmp_path / "files", coarse, python2)
    data.prepare(name, data_dir=tmp_path, files=tmp_path / "files")
    d = data.load(name, data_dir=tmp_path)
    np.testing.assert_array_equal(d.train["image"], train)
    np.testing.assert_array_equal(d.test["image"], test)
    assert [*d.train["label"], *d.test["label"]] == labels
    assert d.class_names[7] == "class 7"
    assert d.num_classes == (100 if coarse else 10)


class Evil:
    def __reduce__(self):
        return print, ("code has run",)


def test_an_archive_cannot_run_code(tmp_path, capsys):
    raw = pickle.dumps(Evil())
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = len(raw)
        tar.addfile(member, io.BytesIO(raw))
    with pytest.raises(InputError, match=r"asks for builtins.print"):
        data.prepare("cifar10", data_dir=tmp_path, files=tmp_path)
    assert capsys.readouterr().out == ""


def truncated(path):
    path.write_bytes(path.read_bytes()[:-20])


def flipped(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 16
    path.write_bytes(raw)


def not_idx(path):
    path.write_bytes(gzip.compress(b"hello"))


@pytest.mark.parametrize("spoil", [truncated, flipped, not_idx, Path.unlink])
def test_damaged_idx_files(tmp_path, mnist_files, spoil):
    files, _ = mnist_files
    spoil(files / "train-images-idx3-ubyte.gz")
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz"):
        data.prepare("mnist", data_dir=tmp_path / "data", files=files)
    assert not list((tmp_path / "data" / "mnist").iterdir())  # nothing half done is left


def test_labels_out_of_range(tmp_path, mnist_files):
    files, _ = mnist_files
    idx(files / "train-labels-idx1-ubyte.gz", np.full(20, 10))
    with pytest.raises(InputError, match="label 10 of image 0 is out of range"):
        data.prepare("mnist", data_dir=tmp_path / "data", files=files)


@pytest.mark.parametrize("spoil", [truncated, flipped])
def test_damaged_archive(tmp_path, spoil):
    cifar_files(tmp_path)
    spoil(tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(InputError, match=r"cifar-10-python.tar.gz.*get the file again"):
        data.prepare("cifar10", data_dir=tmp_path, files=tmp_path)


@pytest.mark.parametrize("spoil", [truncated, flipped])
def test_damage_to_what_was_prepared(tmp_path, mnist_files, spoil):
    spoil(data.prepare("mnist", data_dir=tmp_path, files=mnist_files[0]))
    with pytest.raises(InputError, match=r"cnn_jax.npz is damaged.*prepare mnist again"):
        data.load("mnist", data_dir=tmp_path)


@pytest.fixture
def server(tmp_path):
    """Serves the folder tmp_path/files on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path / "files")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()
        thread.join()


def test_downloads_must_have_the_published_checksum(tmp_path, monkeypatch, mnist_files, server):
    import hashlib

    files, arrays = mnist_files
    mnist = originals.ORIGINALS["mnist"]._replace(url=server)
    monkeypatch.setitem(originals.ORIGINALS, "mnist", mnist)
    with pytest.raises(InputError, match=r"sha256 checksum .* published is 440fcabf"):
        data.prepare("mnist", data_dir=tmp_path)
    published = {file: "sha256:" + hashlib.sha256((files / file).read_bytes()).hexdigest() for file in mnist.files}
    monkeypatch.setitem(originals.ORIGINALS, "mnist", mnist._replace(files=published))
    data.prepare("mnist", data_dir=tmp_path)
    np.testing.assert_array_equal(data.load("mnist", data_dir=tmp_path).test["image"][..., 0], arrays["test"][0])


def test_no_network(tmp_path, monkeypatch):
    mnist = originals.ORIGINALS["mnist"]._replace(url="http://127.0.0.1:9/")  # nobody listens there
    monkeypatch.setitem(originals.ORIGINALS, "mnist", mnist)
    with pytest.raises(InputError, match=r"cannot download http://127.0.0.1:9/train-images.*--files"):
        data.prepare("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn", "imagenet2012"])
def test_not_prepared(tmp_path, name):
    with pytest.raises(InputError, match=f"data set {name} is not prepared in .*(prepare {name}|tfds build)"):
        data.load(name, data_dir=tmp_path)


@pytest.mark.parametrize(("name", "says"), [("svhn", "needs TensorFlow"), ("mnist_10k", "nothing to prepare")])
def test_prepare_says_what_it_cannot(tmp_path, name, says):
    with pytest.raises(InputError, match=says):
        data.prepare(name, data_dir=tmp_path)


def test_a_disk_that_refuses(tmp_path, mnist_files):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*(Not a directory|File exists)"):
        data.prepare("mnist", data_dir=tmp_path / "file", files=mnist_files[0])


@pytest.mark.skipif(not originals.DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_real_fashion_mnist(tmp_path):
    d = data.load("fashion_mnist", data_dir=tmp_path)
    assert d.counts("train").tolist() == [6000] * 10
    assert d.counts("test").tolist() == [1000] * 10
    np.testing.assert_allclose((d.train["image"] / np.float32(255)).mean(), d.mean[0], atol=1e-5)
    np.testing.assert_allclose((d.train["image"] / np.float32(255)).std(), d.std[0], atol=1e-5)
    data.prepare("fashion_mnist", data_dir=tmp_path, files=originals.DEBIAN_FASHION_MNIST)
    again = data.load("fashion_mnist", data_dir=tmp_path)
    np.testing.assert_array_equal(again.train["image"], d.train["image"])


def test_fashion_mnist_without_debian(tmp_path, monkeypatch):
    monkeypatch.setattr(originals, "DEBIAN_FASHION_MNIST", tmp_path / "none")
    with pytest.raises(InputError, match=r"not prepared.*dataset-fashion-mnist"):
        data.load("fashion_mnist", data_dir=tmp_path)


def test_from_the_command_line(tmp_path, mnist_files):
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "cnn_jax.data", *arguments], capture_output=True, text=True)

    done = run("prepare", "mnist", "--files", str(mnist_files[0]), "--data-dir", str(tmp_path))
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "mnist" / "cnn_jax.npz"))
    done = run("prepare", "mnits")
    assert done.returncode == 2
    assert done.stderr.startswith("unknown data set 'mnits': did you mean 'mnist'?")
    assert done.stderr.count("\n") == 1
