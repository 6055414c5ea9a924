"""cnn_jax: a laboratory for convolutional networks in JAX and Flax.

Start from a script in `experiments/`, or from Python:

    from cnn_jax import data, models, runtime, tasks, training

    runtime.configure()
"""

__version__ = "0.1.0"
