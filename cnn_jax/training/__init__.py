"""How is it learned? State, step, optimisers, devices, checkpoints, and the loop that joins them."""

from cnn_jax.training.checkpoint import Checkpoints, Restored
from cnn_jax.training.loop import Fit, Interrupted, check, evaluate, fit, make_evaluator
from cnn_jax.training.optim import frozen, layer_rates, make_optimiser, make_schedule
from cnn_jax.training.order import Order
from cnn_jax.training.parallel import Parallel, parallel
from cnn_jax.training.state import TrainState, create_state
from cnn_jax.training.step import make_eval_step, make_train_step
from cnn_jax.training.watch import NonFinite

__all__ = [
    "Checkpoints",
    "Fit",
    "Interrupted",
    "NonFinite",
    "Order",
    "Parallel",
    "Restored",
    "TrainState",
    "check",
    "create_state",
    "evaluate",
    "fit",
    "frozen",
    "layer_rates",
    "make_eval_step",
    "make_evaluator",
    "make_optimiser",
    "make_schedule",
    "make_train_step",
    "parallel",
]
