"""Claims on what layers are made of: how gradients flow, and what non-linearities and batch norm do."""

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.reporting import comparisons as draw
from cnn_jax.statistics import interval
from experiments.claims.lab import Claim, Lab, clearly_above, means, several
from experiments.claims.networks import Tower


def gradient_flow(lab: Lab) -> Claim:
    """How large the gradient of the first kernel of a deep tower is, as a multiple of the last one's, untrained."""
    depth = 6 if lab.tiny else 20
    ways = {
        "sigmoid": {"activation": "sigmoid"},
        "ReLU": {"activation": "relu"},
        "ReLU, batch norm": {"activation": "relu", "norm": True},
        "ReLU, residual": {"activation": "relu", "residual": True},
    }
    images, labels = lab.digits.preprocess(lab.digits.train["image"][:64]), lab.labels[:64]
    found, flow = {}, {}
    for way, options in ways.items():
        model = Tower(depth=depth, **options)

        @jax.jit
        def sizes(variables, model=model):
            def loss(params):
                logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
                return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

            gradient = jax.grad(loss)(variables["params"])
            return jnp.stack([jnp.sqrt(jnp.square(gradient[f"conv{i}"]["kernel"]).mean()) for i in range(1, depth + 1)])

        start = lab.starter(model)
        flow[way] = np.stack([np.asarray(sizes(start(seed))) for seed in lab.seeds])
        found[way] = [float(np.log10(np.maximum(one[1], 1e-30) / one[-1])) for one in flow[way]]
    better = [clearly_above(found[way], found["sigmoid"]) for way in ways if way != "sigmoid"]
    lost, kept = found["sigmoid"], max((way for way in ways if way != "sigmoid"), key=lambda way: np.mean(found[way]))
    return Claim(
        said="In deep networks gradients vanish; ReLU, batch norm and residual connections let them flow.",
        found=f"In untrained towers of {depth} convolutions the gradient of the second kernel is compared with that of "
        "the last. With the sigmoid it is 10 to the power of "
        f"{several(lost, scale=1, unit='')} of it; "
        + "; ".join(
            f"with {way} {several(found[way], scale=1, unit='')}" for way in ways if way != "sigmoid"
        )
        + ".",
        number=f"10^({several(lost, scale=1, unit='')}) with the sigmoid, "
        f"10^({several(found[kept], scale=1, unit='')}) with {kept}",
        verdict=(
            "holds" if interval(lost)[0] < -3 and all(better)
            else "holds in part" if interval(lost)[0] < -3 else "does not hold"
        ),
        figure=draw.lines(
            {way: {i + 1: np.log10(np.maximum(of[:, i], 1e-30)) for i in range(depth)} for way, of in flow.items()},
            "convolution, from the image", "gradient, power of ten", scale=1, log=False,
        ),
        caption="Root mean square of the gradient of each kernel.",
        numbers={f"gradient_flow_{way}": interval(values)[0] for way, values in found.items()},
    )  # fmt: skip


def relu(lab: Lab) -> Claim:
    ways = {"ReLU": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "none": None}
    found = {}
    for name, activation in ways.items():
        model = Tower(depth=6, activation=activation)
        learn, accuracy = lab.learner(model, learning_rate=3e-3), lab.scorer(model)
        found[name] = [accuracy(learn(seed)) for seed in lab.seeds]
    others = {name: clearly_above(found["ReLU"], values) for name, values in found.items() if name != "ReLU"}
    return Claim(
        said="ReLU makes networks learn faster and better than sigmoid or tanh, and without a non-linearity depth is "
        "worth nothing.",
        found=f"The same network of six convolutions learns for {lab.steps} steps with each. ReLU reaches "
        f"{several(found['ReLU'])}, tanh {several(found['tanh'])}, sigmoid {several(found['sigmoid'])}. Without any "
        f"the whole network is one linear map and its pooling, and reaches {several(found['none'])}.",
        number=f"ReLU {several(found['ReLU'])}, sigmoid {several(found['sigmoid'])}",
        verdict="holds" if all(others.values()) else "holds in part" if others["sigmoid"] else "does not hold",
        figure=draw.bars(found, "test accuracy, %"),
        caption=f"Accuracy after {lab.steps} steps; bars are 95 % intervals over {len(lab.seeds)} seeds.",
        numbers=means(found, "relu"),
    )


def batch_norm(lab: Lab) -> Claim:
    rates = (1e-3, 1e-1) if lab.tiny else (1e-4, 1e-3, 1e-2, 1e-1)
    found = {"with": {}, "without": {}}
    for way, norm in (("with", True), ("without", False)):
        model = Tower(depth=6, norm=norm)
        accuracy = lab.scorer(model)
        for rate in rates:
            learn = lab.learner(model, learning_rate=rate)
            found[way][rate] = [accuracy(learn(seed)) for seed in lab.seeds]
    better = [rate for rate in rates if clearly_above(found["with"][rate], found["without"][rate])]
    top = {way: max(of.values(), key=np.mean) for way, of in found.items()}
    worst = rates[-1]
    return Claim(
        said="Batch norm makes training faster and allows larger learning rates.",
        found=f"Six convolutions learn for {lab.steps} steps of Adam at each rate, with batch norm and without. At "
        f"{worst:g} it is {several(found['with'][worst])} with and {several(found['without'][worst])} without; at the "
        f"rate that is best for each, {several(top['with'])} and {several(top['without'])}. It is clearly better at "
        f"{len(better)} of {len(rates)} rates.",
        number=f"{several(found['with'][worst])} with, {several(found['without'][worst])} without, at rate {worst:g}",
        verdict=(
            "holds" if worst in better and clearly_above(top["with"], top["without"])
            else "holds in part" if better else "does not hold"
        ),
        figure=draw.lines(found, "learning rate", "test accuracy, %"),
        caption="Accuracy by learning rate, with batch norm and without.",
        numbers={f"batch_norm_{way}_{rate:g}": interval(of[rate])[0] for way, of in found.items() for rate in rates},
    )  # fmt: skip


CLAIMS = {"gradient_flow": gradient_flow, "relu": relu, "batch_norm": batch_norm}
