"""What has it learned? Functions of pure functions and arrays."""

from cnn_jax.analysis.activations import capture

__all__ = ["capture"]
