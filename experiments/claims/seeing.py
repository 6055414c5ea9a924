"""Claims on what CNNs see: one filter for all places, a hierarchy of features, and moved images."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import analysis, models
from cnn_jax.analysis import receptive, translation
from cnn_jax.reporting import textbook as draw
from cnn_jax.reporting.statistics import interval
from experiments.claims.lab import Claim, Lab, clearly_above, several
from experiments.claims.networks import Tower


def sharing(lab: Lab) -> Claim:
    """The same two convolutions with one kernel for all places and with one for each, on digits where they were
    learned and two pixels beside it."""
    ways = {"shared": True, "a filter for each place": False}
    sizes = (100,) if lab.tiny else (100, 400, 1600)
    found = {f"{way}, {where}": {n: [] for n in sizes} for way in ways for where in ("in place", "moved")}
    moved = np.roll(lab.digits.test["image"], (2, 2), (1, 2))
    counts = {}
    for way, shared in ways.items():
        model = Tower(depth=2, width=8, shared=shared, flatten=True)
        learn, accuracy = lab.learner(model), lab.scorer(model)
        for n in sizes:
            for seed in lab.seeds:
                variables = learn(seed, analysis.draw_balanced(jax.random.key(seed), lab.labels, shots=n // 10))
                found[f"{way}, in place"][n].append(accuracy(variables))
                found[f"{way}, moved"][n].append(accuracy(variables, moved))
        counts[way] = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    conv = nn.Conv(1, (3, 3), use_bias=False).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    filter_size = sum(leaf.size for leaf in jax.tree.leaves(conv))
    dense = 32 * 32 * 3 * 32 * 32
    few = sizes[0]
    here = clearly_above(found["shared, in place"][few], found["a filter for each place, in place"][few])
    there = clearly_above(found["shared, moved"][few], found["a filter for each place, moved"][few])
    return Claim(
        said="One filter serves the whole image, which saves parameters and labels.",
        found=f"A filter of 3×3 on three colours has {filter_size} weights, wherever it looks; a dense layer that "
        f"makes one map of 32×32 of a colour image of that size has {dense:,}. In a network of two convolutions with "
        f"{counts['shared']:,} parameters, a filter for each place makes it {counts['a filter for each place']:,}. "
        f"From {few} digits the shared filters reach {several(found['shared, in place'][few])}, the others "
        f"{several(found['a filter for each place, in place'][few])}; on digits moved by two pixels down and right "
        f"{several(found['shared, moved'][few])} and {several(found['a filter for each place, moved'][few])}.",
        number=f"{filter_size} weights for {dense:,}; {several(found['shared, in place'][few])} for "
        f"{several(found['a filter for each place, in place'][few])} from {few} digits",
        verdict="holds" if here and there else "holds in part",  # that it saves parameters is arithmetic
        figure=draw.lines(found, "digits to learn from", "test accuracy, %"),
        caption="Shared filters, and a filter for each place.",
        numbers={f"sharing_{way}_{n}": interval(of[n])[0] for way, of in found.items() for n in sizes}
        | {"filter_weights": filter_size, "dense_weights": dense},
    )


def hierarchy(lab: Lab) -> Claim:
    """What can be read off each stage by a linear map, and what a unit of it sees; and what the first filters are."""
    model, count = models.create("simple_cnn"), 200 if lab.tiny else 1000
    train = (lab.digits.train["image"][:count], lab.labels[:count])
    test = (lab.digits.test["image"], lab.test_labels)
    stages = ("conv1", "conv2", "fc1")
    found = {stage: [] for stage in stages}
    edges = []
    for variables in lab.simple_cnn:
        probes = analysis.probe_stages(
            model, variables, train, test, num_classes=10, names=stages, preprocess=lab.digits.preprocess
        )
        for stage in stages:
            found[stage].append(probes[stage])
        edges.append(edge_share(np.asarray(variables["params"]["conv1"]["kernel"][:, :, 0])))
    noise = jax.random.normal(jax.random.key(0), (8, *lab.digits.image_shape))
    fields = [receptive.measured(model, lab.simple_cnn[0], noise, stage=stage).size[0] for stage in stages[:2]]
    rises = [clearly_above(found[b], found[a]) for a, b in itertools.pairwise(stages)]
    return Claim(
        said="Low layers see edges, high layers parts and whole things.",
        found=f"The mean of each map over its places is given to a linear classifier. From conv1 it names "
        f"{several(found['conv1'])} of the digits, from conv2 {several(found['conv2'])}, from the dense layer "
        f"{several(found['fc1'])}: what a digit is becomes plainer from stage to stage. A unit of conv1 sees "
        f"{fields[0]} pixels each way, one of conv2 {fields[1]}. Of the energy of the first filters {several(edges)} "
        "is a brightness that falls one way, as an edge detector's; a random filter has 25 %. That high layers see "
        "concepts as people have them is more than these numbers say.",
        number=f"linear probe: {', '.join(several(found[stage]) for stage in stages)}",
        verdict="holds in part" if all(rises) or clearly_above(edges, [0.25] * len(edges)) else "does not hold",
        figure=draw.bars(found, "accuracy of a linear probe, %"),
        caption="What can be read off each stage.",
        numbers={f"probe_{stage}": interval(values)[0] for stage, values in found.items()}
        | {"edge_share": interval(edges)[0]},
    )  # fmt: skip


def edge_share(filters: np.ndarray) -> float:
    """The share of the squares of 3×3 filters f32[3,3,F] that lies in their two slopes, down and to the right.

    Of random filters it is 2/9 of the whole, and 2/8 of what is left without the mean.
    """
    flat = filters.reshape(9, -1) - filters.reshape(9, -1).mean(0, keepdims=True)
    down, right = (axis.reshape(9) / np.sqrt(6) for axis in np.mgrid[-1:2, -1:2])
    return float((np.square(down @ flat) + np.square(right @ flat)).sum() / np.square(flat).sum())


def translation_equivariance(lab: Lab) -> Claim:
    """Circular padding and a shift by the product of the strides: exact; the real network on moved digits: not."""
    model = models.create("simple_cnn")
    around = models.create("simple_cnn", padding="circular")
    images = np.asarray(lab.digits.preprocess(lab.digits.test["image"][: 64 if lab.tiny else 256]))
    labels = lab.test_labels[: len(images)]
    exact = max(
        float(np.max(errors))
        for variables in lab.simple_cnn
        for stage, errors in translation.equivariance(
            around, variables, images[:32], [(4, 0), (0, -8), (12, 4)], names=("conv1", "conv2")
        ).items()
    )
    black = (0 - lab.digits.mean[0]) / lab.digits.std[0]
    reach = 2 if lab.tiny else 8
    maps = [
        translation.heat_map(model, variables, images, labels, reach=reach, fill=black) for variables in lab.simple_cnn
    ]
    still = [m.accuracy[reach, reach] for m in maps]
    rings = {
        d: [
            float(m.accuracy[np.maximum(*np.abs(np.mgrid[-reach : reach + 1, -reach : reach + 1])) == d].mean())
            for m in maps
        ]
        for d in range(reach + 1)
    }
    far = min(4, reach)
    lost = [a - b for a, b in zip(still, rings[far], strict=True)]
    return Claim(
        said="CNNs are invariant to translation.",
        found="Two things go by this name. That a convolution's map moves with its image is exact: where images and "
        f"padding go around and the shift is a multiple of the strides, no stage differs by more than {exact:.1g} of "
        "its size, if at all, and that is rounding. That the answer does not change is another matter: of digits moved "
        f"on a black ground by {far} pixels {several(rings[far])} are named rightly instead of {several(still)}, by "
        f"{reach} pixels {several(rings[reach])}, for the dense layer has a weight for each place.",
        number=f"{several(lost)} points lost by {far} pixels; equivariance error {exact:.1g}",
        verdict="does not hold" if exact > 1e-4 else "holds in part" if interval(lost)[0] > 0.01 else "holds",
        figure=draw.heat_map(np.mean([m.accuracy for m in maps], axis=0), reach),
        caption="Test accuracy under each shift, in pixels.",
        numbers={"equivariance_error": exact}
        | {f"accuracy_moved_{d}": interval(values)[0] for d, values in rings.items()},
    )  # fmt: skip


def pooling(lab: Lab) -> Claim:
    """How steady the answer is under small shifts, by pooling and head, all trained alike."""
    ways = {
        "max, flattened": {},
        "average, flattened": {"pooling": "average"},
        "blur, flattened": {"pooling": "blur"},
        "max, averaged": {"head": "average"},
        "adaptive, averaged": {"pooling": "aps", "head": "average"},
    }
    images = np.asarray(lab.digits.preprocess(lab.digits.test["image"][: 64 if lab.tiny else 256]))
    labels = lab.test_labels[: len(images)]
    black = (0 - lab.digits.mean[0]) / lab.digits.std[0]
    kept, accuracy = {}, {}
    for way, options in ways.items():
        model = models.create("simple_cnn", **options)
        learn, score = lab.learner(model), lab.scorer(model)
        kept[way], accuracy[way] = [], []
        for seed in lab.seeds:
            variables = learn(seed)
            accuracy[way].append(score(variables))
            kept[way].append(
                float(translation.heat_map(model, variables, images, labels, reach=3, fill=black).kept.mean())
            )
    plain, best = kept["max, flattened"], max(kept, key=lambda way: np.mean(kept[way]))
    return Claim(
        said="Pooling makes the answer steady under small shifts.",
        found="SimpleCNN is trained with each pooling and head, and its test images are moved by up to three pixels "
        f"every way. With max pooling and a flattened map {several(plain)} of the answers stay; "
        + "; ".join(f"{way} {several(values)}" for way, values in kept.items() if way != "max, flattened")
        + f". Test accuracy in place is {several(accuracy['max, flattened'])} for the first. What the head does with "
        "places weighs as much as how they are pooled.",
        number=f"{several(plain)} of answers kept; at best {several(kept[best])} ({best})",
        verdict=(
            "holds in part" if best != "max, flattened" and clearly_above(kept[best], plain)
            else "holds" if interval(plain)[0] > 0.95 else "does not hold"
        ),
        figure=draw.bars(kept, "answers kept under shifts of up to 3 pixels, %"),
        caption="Steadiness of the answer by pooling and head.",
        numbers={f"kept_{way}": interval(values)[0] for way, values in kept.items()}
        | {f"accuracy_{way}": interval(values)[0] for way, values in accuracy.items()},
    )  # fmt: skip


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


CLAIMS = {
    "sharing": sharing,
    "hierarchy": hierarchy,
    "pooling": pooling,
    "translation": translation_equivariance,
    "gradient_flow": gradient_flow,
}
