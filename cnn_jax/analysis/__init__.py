"""What has it learned, and what does it cost? Functions of pure functions and arrays."""

from cnn_jax.analysis import cost
from cnn_jax.analysis.activations import capture
from cnn_jax.analysis.probe import Probe, draw_balanced, embed, few_shot, linear_probe

__all__ = ["Probe", "capture", "cost", "draw_balanced", "embed", "few_shot", "linear_probe"]
