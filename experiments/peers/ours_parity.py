"""What our networks compute with PyTorch's weights, in the names of `torch_parity`."""

import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch

from cnn_jax import models, tasks
from experiments.peers.work import WORK


class Ours(NamedTuple):
    model: nn.Module
    task: tasks.Task
    variables: dict


def create(name: str, peer: torch.nn.Module) -> Ours:
    """The network with the peer's weights, and the task with its settings."""
    kind, classes = WORK[name].task, WORK[name].classes
    model = models.create(name, num_classes=classes, **({"stem": "large"} if kind == "classify" else {}))
    options = {"auxiliary": 0.5} if kind == "segment" else {}
    if kind == "detect":
        options = {"strides": model.strides, "score_threshold": peer.score_thresh}
    return Ours(model, getattr(tasks, kind)(classes, **options), converted(name, peer.state_dict()))


def converted(name: str, state: dict[str, torch.Tensor]) -> dict:
    """A state dict as our variables, on the way that pretrained weights take."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder, "state.pth"))
        return models.load_pretrained(name, Path(folder, "state.pth"))


def evaluate(ours: Ours, batch: dict) -> dict[str, np.ndarray | list]:
    """As `torch_parity.evaluate`: a detector's levels in a row, [N,places,…], and its detections without padding."""
    outputs = jax.jit(ours.model.apply)(ours.variables, batch["image"] / np.float32(255))
    if not isinstance(outputs, list):
        return outputs if isinstance(outputs, dict) else {"logits": outputs}
    found = jax.tree.map(np.asarray, jax.jit(ours.task.predict)(outputs))
    names = {"boxes": "boxes", "scores": "scores", "labels": "label"}
    real = list(enumerate(found["objects"]))
    detected = {f"detected {of}": [found[key][i][rows] for i, rows in real] for of, key in names.items()}
    levels = [{**level, "centerness": level["centerness"][..., None]} for level in outputs]
    row = lambda x: x.reshape(len(x), -1, x.shape[-1])  # noqa: E731
    return {name: np.concatenate([row(level[name]) for level in levels], axis=1) for name in levels[0]} | detected


def loss(ours: Ours, batch: dict) -> jax.Array:
    """In training."""
    return jax.jit(partial(_loss, ours, batch, train=True))(ours.variables["params"])


def gradient(ours: Ours, batch: dict) -> dict:
    """Of the loss by the parameters, batch norm with its running statistics."""
    return jax.jit(jax.grad(partial(_loss, ours, batch, train=False)))(ours.variables["params"])


def _loss(ours, batch, params, *, train):
    def without_dropout(run, args, kwargs, context):
        return args[0] if isinstance(context.module, nn.Dropout) else run(*args, **kwargs)

    images, variables = batch["image"] / jnp.float32(255), {**ours.variables, "params": params}
    with nn.intercept_methods(without_dropout):
        outputs, _ = ours.model.apply(variables, images, train=train, mutable=["batch_stats"])
    return ours.task.loss(outputs, batch)[0].mean()
