"""What is learned: a `Task` is four pure functions around a model's outputs."""

from cnn_jax.tasks.classify import classify
from cnn_jax.tasks.detect import detect
from cnn_jax.tasks.segment import segment
from cnn_jax.tasks.task import Task, check_labels
from cnn_jax.tasks.whole import Averaged

__all__ = ["Averaged", "Task", "check_labels", "classify", "detect", "segment"]
