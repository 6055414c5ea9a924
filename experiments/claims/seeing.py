"""Claims on what CNNs see: one filter for all places, and a hierarchy of features."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import analysis
from cnn_jax.analysis import receptive
from cnn_jax.reporting import comparisons as draw
from cnn_jax.statistics import interval
from experiments.claims import rules
from experiments.claims.lab import Claim, Lab, several
from experiments.claims.networks import Tower


def sharing(lab: Lab) -> Claim:
    """The same two convolutions with one kernel for all places and with one for each, on images where they were
    learned and two pixels beside it."""
    ways = {"shared": True, "a filter for each place": False}
    shots = lab.shots(10, 40, 160)[: 1 if lab.tiny else None]
    sizes = [n * lab.classes for n in shots]
    found = {f"{way}, {where}": {n: [] for n in sizes} for way in ways for where in ("in place", "moved")}
    moved = np.roll(lab.digits.test["image"], (2, 2), (1, 2))
    counts = {}
    for way, shared in ways.items():
        model = Tower(depth=2, width=8, shared=shared, flatten=True, num_classes=lab.classes)
        learn, accuracy = lab.learner(model), lab.scorer(model)
        for n, size in zip(shots, sizes, strict=True):
            for seed in lab.seeds:
                variables = learn(seed, analysis.draw_balanced(jax.random.key(seed), lab.labels, shots=n))
                found[f"{way}, in place"][size].append(accuracy(variables))
                found[f"{way}, moved"][size].append(accuracy(variables, moved))
        counts[way] = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    conv = nn.Conv(1, (3, 3), use_bias=False).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    filter_size = sum(leaf.size for leaf in jax.tree.leaves(conv))
    dense = 32 * 32 * 3 * 32 * 32
    few, many = sizes[0], sizes[-1]
    cases = {
        f"from {n:,} images, {where}": (found[f"shared, {where}"][n], found[f"a filter for each place, {where}"][n])
        for where in ("in place", "moved")
        for n in sizes
    }
    told = "; ".join(
        f"from {n:,} images {several(found['shared, in place'][n])} with shared filters and "
        f"{several(found['a filter for each place, in place'][n])} with the others, moved by two pixels down and right "
        f"{several(found['shared, moved'][n])} and {several(found['a filter for each place, moved'][n])}"
        for n in dict.fromkeys((few, many))
    )
    return Claim(
        said="One filter serves the whole image, which saves parameters and labels.",
        found=f"That it saves parameters is arithmetic: a filter of 3×3 on three colours has {filter_size} weights, "
        f"wherever it looks; a dense layer that makes one map of 32×32 of a colour image of that size has {dense:,}. "
        f"In a network of two convolutions with {counts['shared']:,} parameters, a filter for each place makes it "
        f"{counts['a filter for each place']:,}. Labels are another matter: {told}.",
        number=f"{filter_size} weights for {dense:,}; "
        + ", ".join(
            f"{several(found['shared, in place'][n])} for {several(found['a filter for each place, in place'][n])} "
            f"from {n:,} images"
            for n in dict.fromkeys((few, many))
        ),
        tests=rules.sharing(cases),
        figure=draw.lines(found, "images to learn from", "test accuracy, %"),
        caption="Shared filters, and a filter for each place.",
        numbers={f"sharing_{way}_{n}": interval(of[n])[0] for way, of in found.items() for n in sizes}
        | {"filter_weights": filter_size, "dense_weights": dense},
    )


def hierarchy(lab: Lab) -> Claim:
    """What can be read off each stage by a linear map, and what a unit of it sees; and what the first filters are."""
    model, count = lab.create(), 200 if lab.tiny else 1000
    train = (lab.digits.train["image"][:count], lab.labels[:count])
    test = (lab.digits.test["image"], lab.test_labels)
    stages = ("conv1", "conv2", "fc1")
    found = {stage: [] for stage in stages}
    edges = []
    for variables in lab.simple_cnn:
        probes = analysis.probe_stages(
            model, variables, train, test, num_classes=lab.classes, names=stages, preprocess=lab.digits.preprocess
        )
        for stage in stages:
            found[stage].append(probes[stage])
        edges.append(edge_share(np.asarray(variables["params"]["conv1"]["kernel"]).reshape(3, 3, -1)))
    noise = jax.random.normal(jax.random.key(0), (8, *lab.digits.image_shape))
    fields = [receptive.measured(model, lab.simple_cnn[0], noise, stage=stage).size[0] for stage in stages[:2]]
    return Claim(
        said="Low layers see edges, high layers what a thing is.",
        found=f"The mean of each map over its places is given to a linear classifier. From conv1 it names "
        f"{several(found['conv1'])} of the images, from conv2 {several(found['conv2'])}, from the dense layer "
        f"{several(found['fc1'])}. A unit of conv1 sees "
        f"{fields[0]} pixels each way, one of conv2 {fields[1]}. Of the energy of the first filters {several(edges)} "
        "is a brightness that falls one way, as an edge detector's; a random filter has 25 %. That high layers see "
        "parts and concepts as people have them, and what networks for photographs see, colours among it, was not "
        "tested.",
        number=f"edges: {several(edges)} of the filters' energy; linear probes: "
        + ", ".join(f"{stage} {several(found[stage])}" for stage in stages),
        tests=rules.hierarchy(edges, found),
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


CLAIMS = {"sharing": sharing, "hierarchy": hierarchy}
