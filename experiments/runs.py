"""What a script takes from an earlier run, or from a file of weights: a trained network, or a start for another."""

import json
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import data, models, training
from cnn_jax.errors import InputError

# What every run's model.json says, and what it says more of each task.
_SAID = {"task", "model", "options", "class_names", "image_shape", "mean", "std"}
_SAID_MORE = {"classify": {"form"}, "detect": {"task_options"}, "segment": {"layout", "stretch"}}


def start(config, model: nn.Module, options: dict, image_shape: tuple[int, int, int]) -> dict | None:
    """The variables that the flags --weights or --backbone ask for; None without them, when a seed draws all.

    Args:
        config: a script's, with `model`, `seed`, `weights` and `backbone`.
        model, options: the network, and the options with which `models.create` made it.
    """
    if config.weights and config.backbone:
        raise InputError("--weights and --backbone both say where to start: give one of them")
    if config.weights:
        net = models.create_pretrained(config.model, config.weights, **options)
        if net.model != model:
            raise InputError(f"--weights: {net.path} is of another network: {_differences(net, model)}")
        net.check_images(image_shape)
        return net.variables
    if config.backbone:
        return with_backbone(model, config.backbone, image_shape, seed=config.seed)
    return None


def _differences(net: models.Pretrained, model: nn.Module) -> str:
    pairs = [(name, getattr(net.model, name), getattr(model, name)) for name in net.options]
    return ", ".join(f"{name} is {theirs!r}, not {ours!r}" for name, theirs, ours in pairs if theirs != ours)


def load_run(folder: Path) -> tuple[dict, dict]:
    """What a run's `model.json` says, and the variables of its newest whole checkpoint."""
    if not folder.is_dir():
        raise InputError(
            f"there is no run folder {folder}: make one with python -m experiments.classify --out {folder}"
        )
    try:
        about = json.loads((folder / "model.json").read_text())
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no trained network: give the --out of a run of experiments.classify, detect or segment"
        ) from None
    except ValueError as error:
        raise InputError(f"{folder / 'model.json'} is damaged ({error}): train again in another folder") from None
    said = about if isinstance(about, dict) else {}
    if missing := sorted((_SAID | _SAID_MORE.get(said.get("task"), set())) - {*said}):
        raise InputError(f"{folder / 'model.json'} lacks {', '.join(missing)}: train again in another folder")
    checkpoints = training.Checkpoints(folder / "checkpoints", read_only=True)
    restored = checkpoints.restore_variables()
    checkpoints.close()
    if restored is None:
        raise InputError(f"the run in {folder} has saved nothing yet: let it finish an epoch first")
    for sentence in restored.damaged:
        print(f"{sentence}: step {restored.step} is used instead")
    return about, restored.state


def load_published(name: str, weights: str, side: int) -> tuple[dict, nn.Module, dict]:
    """What `model.json` would say of a classifier with published weights, the network, and its variables."""
    if side < 1:
        raise InputError(f"image_size is {side}: it must be 1 or more")
    net = models.create_pretrained(name, weights)
    image_shape = (side, side, net.image_shape[-1])
    net.check_images(image_shape)
    logits = jax.eval_shape(net.model.apply, net.variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    if not isinstance(logits, jax.ShapeDtypeStruct) or logits.ndim != 2:
        raise InputError(f"{name} is no classifier: train it with experiments.detect or segment, and give the run")
    print(net.report)
    names = data.imagenet_classes()
    names = names if logits.shape[1] == len(names) else [f"class {i}" for i in range(logits.shape[1])]
    about = {"dataset": weights, "class_names": names, "image_shape": list(image_shape)}
    return about | {"mean": net.mean, "std": net.std}, net.model, net.variables


def with_backbone(model: nn.Module, folder: Path, image_shape: tuple[int, int, int], *, seed: int) -> dict:
    """The variables of a model whose backbone is that of a classifier's run, and whose rest is drawn from `seed`.

    A backbone of grey images sees the mean of three channels.

    Raises:
        InputError: the model has no backbone, or the run's network is not that backbone.
    """
    about, trained = load_run(folder)
    fresh = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, *image_shape)))
    if "backbone" not in fresh["params"]:
        raise InputError(f"--backbone: {type(model).__name__} has no backbone; choose a model on a ResNet")
    for kind in fresh:
        wanted = fresh[kind]["backbone"]
        found = {name: values for name, values in trained.get(kind, {}).items() if name != "logits"}
        if about["image_shape"][-1] == 1 and image_shape[-1] == 3 and "stem_conv" in found:
            found["stem_conv"] = {"kernel": found["stem_conv"]["kernel"].repeat(3, axis=2) / 3}
        shapes = [jax.tree.map(lambda x: tuple(x.shape), tree) for tree in (wanted, found)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"--backbone: the run in {folder} trained {about['model']} on images of {about['image_shape']}, which "
                "is not the backbone of this model: its layers, stem, norm or channels differ; "
                + _fitting(about["model"])
            )
        fresh[kind]["backbone"] = found
    return fresh


def _fitting(backbone: str) -> str:
    """In words, the models with such a backbone, or what to train for one."""
    names = [name for name in models.names() if re.fullmatch(rf"[a-z0-9]+_{re.escape(backbone)}(_fpn)?", name)]
    return f"it fits {', '.join(names)}" if names else "train one with python -m experiments.classify --model resnet18"


def normalised(images, about: dict) -> jax.Array:
    """u8[N,H,W,C], or f32 in [0,1], as the network of `model.json` takes them."""
    scaled = images.astype(np.float32) / 255 if images.dtype == np.uint8 else images
    mean, std = (np.reshape(about[name], (1, 1, 1, -1)).astype(np.float32) for name in ("mean", "std"))
    return jnp.asarray((scaled - mean) / std)
