"""Our training step as `training.fit` runs it: the data on the device, the batch gathered there."""

import time
from functools import partial

from experiments.peers.contest import SHAPES, serve


def work(*, model: str, batch_size: int, precision: str, images: int, matmul_size: int) -> None:
    from cnn_jax import runtime

    runtime.configure()
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from cnn_jax import models, tasks, training

    size, channels, classes = SHAPES[model]
    stem = {} if model == "simple_cnn" else {"stem": "large"}
    net = models.create(model, num_classes=classes, dtype=precision, **stem)
    tx, key = optax.adam(1e-3), jax.random.key(0)
    step = training.make_train_step(net, tasks.classify(classes), tx)
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (images, size, size, channels), np.uint8),
        "label": rng.integers(0, classes, images, np.int32),
    }
    data = jax.device_put(data)
    state = training.create_state(key, net, tx, (size, size, channels))
    loop = jax.default_backend() != "cpu"  # many steps a dispatch, as `fit` does there
    order, done = training.Order(images, batch_size, 0), 0

    @partial(jax.jit, donate_argnums=0)
    def run(state, data, rows):
        def one(state, rows):
            return step(state, {name: values[rows] for name, values in data.items()}, key)

        return jax.lax.scan(one, state, rows) if loop else one(state, rows)

    def seconds(steps: int) -> float:
        nonlocal state, done
        rows = order.rows(done, done + steps)
        done += steps
        begin = time.perf_counter()
        for feed in [rows] if loop else rows:
            state, stats = run(state, data, feed)
        jax.block_until_ready((state, stats))
        return time.perf_counter() - begin

    dtype = jnp.float32 if precision == "float32" else jnp.bfloat16
    a = jnp.ones((matmul_size, matmul_size), dtype)
    multiply = jax.jit(jnp.matmul)

    def matmul() -> float:
        begin = time.perf_counter()
        multiply(a, a).block_until_ready()
        return time.perf_counter() - begin

    seconds(3), matmul()
    flops = models.describe(net, (size, size, channels)).flops
    serve(seconds, matmul, jax=jax.__version__, device=jax.devices()[0].device_kind, flops=flops)


def program(epochs: float | None, *, steps: int | None = None) -> None:
    """Trains on mnist_10k and tests after each epoch, as `torch_program.program` does."""
    from cnn_jax import runtime

    runtime.configure()
    from cnn_jax import data, models, tasks, training

    digits = data.load("mnist_10k")
    training.fit(
        models.create("simple_cnn"),
        tasks.classify(10),
        digits.train,
        epochs=epochs,
        steps=steps,
        test=digits.test if epochs else None,
        preprocess=digits.preprocess,
        log=lambda kind, step, values: kind == "test" and print(f"step {step}: test accuracy {values['accuracy']:.4f}"),
    )
