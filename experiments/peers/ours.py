"""Our training step as `training.fit` runs it: the data on the device, the batch gathered there."""

import time
from contextlib import nullcontext
from functools import partial

from experiments.peers.contest import serve
from experiments.peers.work import WORK, random_data


def work(*, plain: bool = False, **settings) -> None:
    """Serves steps, forward passes and products; `plain` with one operation of XLA's a layer."""
    from cnn_jax.models import traced_for

    with traced_for("tpu") if plain else nullcontext():
        _serve(**settings)


def _serve(*, model: str, batch_size: int, side: int, precision: str, images: int, matmul_size: int) -> None:
    from cnn_jax import runtime

    runtime.configure()
    import jax
    import jax.numpy as jnp
    import optax

    from cnn_jax import models, tasks, training
    from cnn_jax.training.loop import repeated

    of = WORK[model]
    stem = {"stem": "large"} if model.startswith("resnet") else {}
    net = models.create(model, num_classes=of.classes, dtype=precision, **stem)
    options = {"strides": net.strides} if of.task == "detect" else {}
    task = getattr(tasks, of.task)(of.classes, **options)
    tx, key, shape = optax.adam(1e-3), jax.random.key(0), (side, side, of.channels)
    step = training.make_train_step(net, task, tx)
    data = jax.device_put(random_data(model, images, side))
    state = training.create_state(key, net, tx, shape)
    loop = jax.default_backend() != "cpu"  # many steps a dispatch, as `fit` does there
    order, done = training.Order(images, batch_size, 0), 0

    @partial(jax.jit, donate_argnums=0)
    def run(state, data, rows):
        def one(state, rows):
            return step(state, {name: values[rows] for name, values in data.items()}, key)

        return repeated(one, state, rows) if loop else one(state, rows)

    def seconds(steps: int) -> float:
        nonlocal state, done
        rows = order.rows(done, done + steps)
        done += steps
        begin = time.perf_counter()
        for feed in [rows] if loop else rows:
            state, stats = run(state, data, feed)
        jax.block_until_ready((state, stats))
        return time.perf_counter() - begin

    @jax.jit
    def evaluate(variables, images):
        return net.apply(variables, images.astype(jnp.float32) / 255)

    def forward(times: int) -> float:
        variables, images = state.variables, data["image"][:batch_size]
        jax.block_until_ready(images)
        begin = time.perf_counter()
        for _ in range(times):
            outputs = evaluate(variables, images)
        jax.block_until_ready(outputs)
        return time.perf_counter() - begin

    dtype = jnp.float32 if precision == "float32" else jnp.bfloat16
    a = jax.random.normal(key, (matmul_size, matmul_size), dtype)  # of zeros or ones a GPU makes products faster
    multiply = jax.jit(jnp.matmul)

    def matmul() -> float:
        begin = time.perf_counter()
        multiply(a, a).block_until_ready()
        return time.perf_counter() - begin

    matmul()
    about = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    about["flops"] = models.describe(net, shape).flops
    serve(about, steps=seconds, forward=forward, matmul=matmul, compilations=run._cache_size)


def program(epochs: float | None, *, steps: int | None = None) -> None:
    """Trains on mnist_10k and tests after each epoch, as `torch_program.program` does."""
    from cnn_jax import data, models, runtime, tasks, training

    runtime.configure()
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
