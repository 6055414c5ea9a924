"""Claims on what layers are made of: how gradients flow, and what non-linearities and batch norm do."""

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.reporting import comparisons as draw
from cnn_jax.statistics import interval
from experiments.claims import rules
from experiments.claims.lab import Claim, Lab, means, several
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
        model = Tower(depth=depth, num_classes=lab.classes, **options)

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
    lost = found["sigmoid"]
    return Claim(
        said="In deep networks gradients vanish; ReLU, batch norm and residual connections let them flow.",
        found=f"In untrained towers of {depth} convolutions the gradient of the second kernel is compared with that of "
        "the last. With the sigmoid it is 10 to the power of "
        f"{several(lost, scale=1, unit='')} of it; "
        + "; ".join(f"with {way} {several(found[way], scale=1, unit='')}" for way in ways if way != "sigmoid")
        + ".",
        number=f"10^({several(lost, scale=1, unit='')}) with the sigmoid, "
        f"10^({several(found['ReLU'], scale=1, unit='')}) with ReLU",
        tests=rules.gradient_flow(found),
        figure=draw.lines(
            {way: {i + 1: np.log10(np.maximum(of[:, i], 1e-30)) for i in range(depth)} for way, of in flow.items()},
            "convolution, from the image", "gradient, power of ten", scale=1, log=False,
        ),
        caption="Root mean square of the gradient of each kernel.",
        numbers={f"gradient_flow_{way}": interval(values)[0] for way, values in found.items()},
    )  # fmt: skip


def relu(lab: Lab) -> Claim:
    """Each non-linearity at the rate that does best with a spare seed, tested with the others."""
    ways = {"ReLU": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "none": None}
    rates = (1e-3, 1e-2) if lab.tiny else (1e-3, 3e-3, 1e-2)
    found, chosen = {}, {}
    for name, activation in ways.items():
        model = Tower(depth=6, activation=activation, flatten=True, num_classes=lab.classes)
        accuracy = lab.scorer(model)
        learners = {rate: lab.learner(model, learning_rate=rate) for rate in rates}
        chosen[name] = max(rates, key=lambda rate: accuracy(learners[rate](lab.spare)))
        found[name] = [accuracy(learners[chosen[name]](seed)) for seed in lab.seeds]
    told = ", ".join(f"{name} {several(found[name])} (rate {chosen[name]:g})" for name in ways)
    return Claim(
        said="With ReLU a network learns more in as many steps than with sigmoid or tanh, or without a non-linearity.",
        found=f"The same network of six convolutions learns for {lab.steps} steps with each, at the best of "
        f"{len(rates)} rates, which a seed of its own has chosen: {told}. Without any, two max poolings are all that "
        "is not linear in it. Whether depth is then worth anything was not tested, nor what longer training changes.",
        number=", ".join(f"{name} {several(values)}" for name, values in found.items()),
        tests=rules.relu(found),
        figure=draw.bars(found, "test accuracy, %"),
        caption=f"Accuracy after {lab.steps} steps; bars are 95 % intervals over {len(lab.seeds)} seeds.",
        numbers=means(found, "relu") | {f"relu_rate_{name}": rate for name, rate in chosen.items()},
    )


def batch_norm(lab: Lab) -> Claim:
    rates = (1e-3, 1e-1) if lab.tiny else (1e-3, 3e-3, 1e-2, 1e-1)
    found, chosen = {"with": {}, "without": {}}, {}
    for way, norm in (("with", True), ("without", False)):
        model = Tower(depth=6, norm=norm, flatten=True, num_classes=lab.classes)
        accuracy, trial = lab.scorer(model), {}
        for rate in rates:
            learn = lab.learner(model, learning_rate=rate)
            trial[rate] = accuracy(learn(lab.spare))
            found[way][rate] = [accuracy(learn(seed)) for seed in lab.seeds]
        chosen[way] = max(trial, key=trial.get)
    best = {way: found[way][chosen[way]] for way in found}
    largest = {way: found[way][rates[-1]] for way in found}
    cases = {"at the best rate of each": tuple(best.values()), f"at {rates[-1]:g}": tuple(largest.values())}
    return Claim(
        said="Batch norm makes training faster and allows larger learning rates.",
        found=f"Six convolutions learn for {lab.steps} steps of Adam at each rate, with batch norm and without. Which "
        f"rate is best for each, a seed of its own has chosen: there it is {several(best['with'])} with (rate "
        f"{chosen['with']:g}) and {several(best['without'])} without ({chosen['without']:g}). At {rates[-1]:g} it is "
        f"{several(largest['with'])} with and {several(largest['without'])} without.",
        number=f"at the best rate of each {several(best['with'])} with, {several(best['without'])} without; at "
        f"{rates[-1]:g} {several(largest['with'])} and {several(largest['without'])}",
        tests=rules.batch_norm(cases),
        figure=draw.lines(found, "learning rate", "test accuracy, %"),
        caption="Accuracy by learning rate, with batch norm and without.",
        numbers={f"batch_norm_{way}_{rate:g}": interval(of[rate])[0] for way, of in found.items() for rate in rates},
    )


CLAIMS = {"gradient_flow": gradient_flow, "relu": relu, "batch_norm": batch_norm}
