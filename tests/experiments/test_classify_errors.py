"""What `python -m experiments.classify` refuses, and with which sentence."""

import re
import shutil
import socket
import struct
from functools import partial

import commands
import numpy as np
import pytest
from PIL import Image

from cnn_jax import data
from experiments import classify, detect, segment

fails = partial(commands.fails, classify)


def test_unknown_names_flags_and_values(tmp_path):
    out = ("--out", tmp_path / "run")
    assert fails("--model", "resnt18", *out).startswith("unknown model 'resnt18': did you mean 'resnet18'? Choices: ")
    assert fails("--dataset", "mnist_1k", *out).startswith("unknown data set 'mnist_1k': did you mean 'mnist_10k'? ")
    assert fails("--epoch", 3, *out).startswith("unknown flag '--epoch': did you mean '--epochs'? Choices: ")
    assert fails("--parallel", "pmp", *out) == "unknown --parallel 'pmp': did you mean 'pmap'? Choices: jit, pmap"
    assert fails("--augment", "shift", "mix", *out).startswith("unknown --augment 'mix': did you mean 'mixup'? ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--batch-size 0", "batch size 0: it must be a multiple of the number of devices, 1"),
        ("--accumulate 0", "accumulate 0: it must be 1 or more"),
        ("--epochs 0", "epochs 0.0: it must be "),
        ("--epochs nan", "epochs nan: it must be "),
        ("--learning-rate -1", "learning rate -1.0: it must be "),
        ("--learning-rate nan", "learning rate nan: it must be "),
        ("--warmup-epochs 20", "warmup epochs 20: they must be at least 0 and less than the run's 12"),
        ("--warmup-epochs -1", "warmup epochs -1: they must be at least 0"),
        ("--warmup-epochs nan", "warmup epochs nan: they must be at least 0"),
        ("--warmup-epochs inf", "warmup epochs inf: they must be at least 0"),
        ("--schedule one-cycle --warmup-epochs 1", "schedule one-cycle has a warm-up of its own"),
        ("--weight-decay -1", "weight decay -1.0: it must be "),
        ("--clip-norm 0", "clip norm 0.0: it must be above 0"),
        ("--label-smoothing 1", "label_smoothing is 1.0: it must be at least 0 and less than 1"),
        ("--ema 1", "decay of the moving average 1.0: it must be at least 0 and less than 1"),
        ("--seed -1", "seed -1: it must be from 0 to 4294967295"),
        ("--model resnt18", "unknown model 'resnt18'"),
        ("--model convnext_tiny --norm group", "--norm group: convnext_tiny has one norm of its own: leave"),
        ("--model vgg11_bn --norm group", "--norm group: vgg11_bn has one norm of its own"),
        ("--model unet_small", "unet_small is a segmenter: train it with experiments.segment, or give --model a class"),
        ("--model deeplabv3_resnet50", "deeplabv3_resnet50 is a segmenter"),
        ("--model fcos_small", "fcos_small is a detector: train it with experiments.detect, or give --model a class"),
        ("--look 3 2000", "--look 2000: the rows of the test set are 0 to 1999"),
        ("--look -1", "--look -1: the rows of the test set are 0 to 1999"),
        ("--dataset=", "the name of the data set is empty"),
        ("--image-size 0", "image_size is 0: "),
        ("--image-size 2", "simple_cnn: images of shape (1, 2, 2, 1), expected [N,H,W,C] with H and W of 4 or more"),
        ("--weights nowhere.pth", "there are no weights in nowhere.pth: give a file"),
    ],
)
def test_values_out_of_range_are_found_before_anything_is_written(tmp_path, monkeypatch, flags, sentence):
    monkeypatch.chdir(tmp_path)
    if not flags.startswith(("--dataset", "--image-size", "--weights", "--look")):
        monkeypatch.delattr(data, "load")  # nor is the data read
    assert fails(*flags.split()).startswith(sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "what"), [(detect, "a detector such as fcos_small"), (segment, "a segmenter such as unet_guided")]
)
def test_a_classifier_is_refused_by_the_other_scripts(tmp_path, monkeypatch, script, what):
    monkeypatch.delattr(data, "load_annotated")
    sentence = commands.fails(script, "--model", "resnet18", "--out", tmp_path / "run")
    assert sentence == f"resnet18 is a classifier: train it with experiments.classify, or give --model {what}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("mnist", "run `python -m cnn_jax.data prepare mnist`, which downloads it"),
        ("svhn", "preparing it needs TensorFlow; where that is installed, run `tfds build svhn_cropped"),
        ("beans", "preparing it needs TensorFlow; where that is installed, run `tfds build beans"),
    ],
)
def test_a_data_set_that_is_not_prepared_says_what_to_do_and_asks_no_network(tmp_path, monkeypatch, name, advice):
    def no_network(*args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    sentence = fails("--dataset", name, "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert sentence.startswith(f"data set {name} is not prepared in {tmp_path}: {advice}")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_images_that_cannot_be_learned_from(pictures, tmp_path):
    flags = ("--out", tmp_path / "run", "--dataset")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert fails(*flags, empty) == (f"{empty} is empty: put the images of each class into a sub-folder of its name")
    assert fails(*flags, tmp_path / "nowhere") == f"no such folder: {tmp_path / 'nowhere'}"
    (pictures / "none").mkdir()
    assert fails(*flags, pictures).startswith(f"{pictures / 'none'} has no images (")
    (pictures / "none").rmdir()

    odd = pictures / "dark" / "x.png"
    Image.fromarray(np.zeros((9, 12), np.uint8)).save(odd)
    sentence = fails(*flags, pictures)
    assert sentence.startswith("images have different sizes: ")
    assert f"{odd} is 9 and 12: give an image size (--image-size)" in sentence
    odd.write_bytes((pictures / "dark" / "0.png").read_bytes()[:80])
    assert re.match(rf"{odd}.*corrupt|.*corrupt.*{odd}", fails(*flags, pictures))
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13)
    odd.write_bytes(header)
    assert str(odd) in fails(*flags, pictures)
    odd.unlink()

    shutil.rmtree(pictures / "light")
    assert fails(*flags, pictures) == (
        f"{pictures} holds one class only, 'dark': make a sub-folder for each class, at least two"
    )
    assert not (tmp_path / "run").exists()


def test_labels_out_of_range():
    images = np.zeros((16, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match=r"label 10 of image 3 is out of range \(and 0 more\): with 10 classes"):
        data.Dataset(
            name="wrong",
            train={"image": images, "label": np.where(np.arange(16) == 3, 10, 1).astype(np.int32)},
            test={"image": images, "label": np.zeros(16, np.int32)},
            class_names=tuple("0123456789"),
            image_shape=(8, 8, 1),
            mean=(0.5,),
            std=(0.5,),
            source="",
        )
