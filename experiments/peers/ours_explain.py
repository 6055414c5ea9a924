"""Our maps of what counted, timed for `experiments.benchmark --task explain`."""

from experiments.peers.contest import serve, timed
from experiments.peers.work import EXPLAINED


def work() -> None:
    from cnn_jax import runtime

    runtime.configure()
    import jax
    import numpy as np

    from cnn_jax import models
    from cnn_jax.analysis import attribution, cam, class_score

    rng = np.random.default_rng(0)
    images = rng.normal(size=(EXPLAINED["images"], 28, 28, 1)).astype(np.float32)
    model = models.create("simple_cnn")
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    score = class_score(model, variables, rng.integers(0, 10, len(images)).astype(np.int32))
    window, stride, steps = EXPLAINED["window"], EXPLAINED["stride"], EXPLAINED["steps"]
    methods = {  # by the batch size that is the default; captum takes no fewer images at a time than there are
        "integrated": lambda: attribution.integrated_gradients(score, images, steps=steps).maps,
        "occlusion": lambda: attribution.occlusion(score, images, window=window, stride=stride),
        "grad_cam": lambda: cam.grad_cam(score, images, stage="conv2"),
    }

    serve(
        {"jax": jax.__version__},
        **{name: timed(lambda m=method: jax.block_until_ready(m())) for name, method in methods.items()},
    )
