"""What is learned: a `Task` is four pure functions around a model's outputs."""

from cnn_jax.tasks.classify import check_labels, classify
from cnn_jax.tasks.detect import detect
from cnn_jax.tasks.segment import segment
from cnn_jax.tasks.task import Task
from cnn_jax.tasks.whole import Averaged

__all__ = ["Averaged", "Task", "check_labels", "classify", "detect", "segment"]
