"""What is computed: networks as Linen modules, their pretrained weights, and their layer tables.

    model = models.create("resnet18", num_classes=100, norm="group")
    variables = model.init(key, images)
    logits = model.apply(variables, images)

A new network is a file beside these, and a line in `catalogue.MODELS`.
"""

from cnn_jax.models.catalogue import create, names, options_of
from cnn_jax.models.describe import describe
from cnn_jax.models.export import export, load_exported, save_pretrained
from cnn_jax.models.platform import traced_for
from cnn_jax.models.pretrained import Pretrained, create_pretrained, load_pretrained

__all__ = [
    "Pretrained",
    "create",
    "create_pretrained",
    "describe",
    "export",
    "load_exported",
    "load_pretrained",
    "names",
    "options_of",
    "save_pretrained",
    "traced_for",
]
