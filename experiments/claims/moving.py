"""Claims on moved images: what pooling keeps, and what is invariant."""

from functools import partial

import numpy as np

from cnn_jax.analysis import translation as moves
from cnn_jax.reporting import comparisons as draw
from cnn_jax.statistics import interval
from experiments.claims import rules
from experiments.claims.lab import Claim, Lab, means, several
from experiments.claims.networks import Tower


def pooling(lab: Lab) -> Claim:
    """How many images are named rightly in place and under small shifts, with pooling and with strides instead."""
    ways = {f"{name}, {head}": (name, head) for head in ("flattened", "averaged") for name in ("strides", "max")}
    images, labels = lab.test(64 if lab.tiny else 256)
    reach = 1 if lab.tiny else 3
    offsets = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T
    move = partial(moves.shift, fill=lab.black)
    steps = {"flattened": 2 * lab.steps, "averaged": 6 * lab.steps}  # these learn slowly: all are to be comparable
    right, accuracy = {way: [] for way in ways}, {way: [] for way in ways}
    for way, (name, head) in ways.items():
        model = Tower(depth=6, pooling=name, flatten=head == "flattened", num_classes=lab.classes)
        learn = lab.learner(model, steps=steps[head], learning_rate=3e-3)
        for seed in lab.seeds:
            correct = moves.respond(model, learn(seed), images, labels, move, offsets).correct
            still = correct[len(offsets) // 2]
            accuracy[way].append(float(still.mean()))
            right[way].append(float((correct & still).mean()))
    return Claim(
        said="Pooling makes the answer steady under small shifts.",
        found="Six convolutions learn with two max poolings, or with strides of 2 in their place, and with a dense "
        f"layer that has a weight for each place (flattened, {steps['flattened']} steps) or takes the mean over all "
        f"(averaged, which learns more slowly, {steps['averaged']} steps). Then {len(images)} test images are moved by "
        f"up to {reach} pixels every way. In place and moved are named rightly, on the mean over all shifts: "
        + "; ".join(f"{way} {several(right[way])} (in place {several(accuracy[way])})" for way in ways)
        + ".",
        number=f"right in place and moved, under a flattened head: max {several(right['max, flattened'])}, strides "
        f"{several(right['strides, flattened'])}; averaged: {several(right['max, averaged'])}, "
        f"{several(right['strides, averaged'])}",
        tests=rules.pooling(right, accuracy["max, flattened"]),
        figure=draw.bars(right, f"right in place and under shifts of up to {reach}, %"),
        caption="Images that are named rightly in place and stay so, by pooling and head.",
        numbers=means(right, "right_and_kept") | means(accuracy, "accuracy"),
    )


def translation(lab: Lab) -> Claim:
    """Circular padding and a shift by the product of the strides: exact; the real network on moved images: not."""
    model, around = lab.create(), lab.create(padding="circular")
    images, labels = lab.test(64 if lab.tiny else 256)
    exact = max(
        float(np.max(errors))
        for variables in lab.simple_cnn
        for stage, errors in moves.equivariance(
            around, variables, images[:32], [(4, 0), (0, -8), (12, 4)], names=("conv1", "conv2")
        ).items()
    )
    reach = 2 if lab.tiny else 8
    maps = [
        moves.heat_map(model, variables, images, labels, reach=reach, fill=lab.black) for variables in lab.simple_cnn
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
    differs = f"off by more than {exact:.1g} of its size" if exact else "off at all"
    return Claim(
        said="CNNs are invariant to translation.",
        found="Two things go by this name. One is that a convolution's map moves with its image: where images and "
        f"padding go around and the shift is a multiple of the strides, no map is {differs}. The other is that "
        f"the answer does not change: of images moved on a black ground by {far} pixels {several(rings[far])} are "
        f"named rightly instead of {several(still)}, by {reach} pixels {several(rings[reach])}. The dense layer has a "
        "weight for each place.",
        number=f"{several(lost, unit='')} points lost by {far} pixels; no map is {differs}",
        tests=rules.translation(exact, lost),
        figure=draw.heat_map(np.mean([m.accuracy for m in maps], axis=0), reach),
        caption="Test accuracy under each shift, in per cent.",
        numbers={"equivariance_error": exact}
        | {f"accuracy_moved_{d}": interval(values)[0] for d, values in rings.items()},
    )


CLAIMS = {"pooling": pooling, "translation": translation}
