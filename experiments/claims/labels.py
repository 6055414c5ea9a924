"""Claims on labels: how many are needed, and what becomes of a network that has too few."""

import math
from functools import partial

import jax
import numpy as np

from cnn_jax import analysis
from cnn_jax.data import augment
from cnn_jax.reporting import comparisons as draw
from cnn_jax.statistics import interval
from experiments.claims import rules
from experiments.claims.lab import Claim, Lab, several


def hunger(lab: Lab) -> Claim:
    """Accuracy by the number of labels, beside a linear map of the pixels."""
    shots, model = lab.shots(10, 40, 160, 640), lab.create()
    learn, accuracy = lab.learner(model), lab.scorer(model)
    pixels, test_pixels = (
        np.asarray(lab.digits.preprocess(of["image"])).reshape(len(of["image"]), -1)
        for of in (lab.digits.train, lab.digits.test)
    )
    found = {"SimpleCNN": {}, "linear map of the pixels": {}}
    for n in shots:
        size = n * lab.classes
        steps = max(lab.steps, math.ceil(size / lab.batch_size))
        rows = [analysis.draw_balanced(jax.random.key(seed), lab.labels, shots=n) for seed in lab.seeds]
        found["SimpleCNN"][size] = [
            accuracy(learn(seed, of, count=steps)) for seed, of in zip(lab.seeds, rows, strict=True)
        ]
        probes = analysis.few_shot(
            pixels, lab.labels, np.stack(rows), test_pixels, lab.test_labels, num_classes=lab.classes
        )
        found["linear map of the pixels"][size] = np.asarray(probes, float).tolist()
    net, linear = found.values()
    fewest, most = min(net), max(net)
    return Claim(
        said="CNNs need many labelled examples.",
        found=f"SimpleCNN learns for {lab.steps} steps, or once through where the images are more, from {fewest:,} to "
        f"{most:,} images. Beside it a linear map of the pixels (ridge regression) is fitted to the same labels. "
        + "; ".join(f"from {n:,} it is {several(net[n])} for the CNN and {several(linear[n])} for the map" for n in net)
        + ".",
        number=f"{several(net[fewest])} from {fewest:,} (linear {several(linear[fewest])}), {several(net[most])} from "
        f"{most:,} (linear {several(linear[most])})",
        tests=rules.hunger(net[fewest], net[most], linear[fewest]),
        figure=draw.lines(found, "labelled images", "test accuracy, %"),
        caption="Accuracy by the number of labelled images.",
        numbers={f"hunger_{n}": interval(values)[0] for n, values in net.items()}
        | {f"hunger_linear_{n}": interval(values)[0] for n, values in linear.items()},
    )


def transfer(lab: Lab) -> Claim:
    """Half of the classes are learned from many labels, the others from few: with what the first taught, or without."""
    half = lab.classes // 2
    size = lab.classes - half
    model = lab.create(num_classes=size)
    known, new = np.flatnonzero(lab.labels < half), np.flatnonzero(lab.labels >= half)
    test = np.flatnonzero(lab.test_labels >= half)
    later = np.where(lab.labels >= half, lab.labels - half, lab.labels)
    images, wanted = lab.digits.test["image"][test], lab.test_labels[test] - half
    learn, accuracy = lab.learner(model, classes=size), lab.scorer(model)
    shots = lab.shots(1, 5, 20)
    found = {way: {n: [] for n in shots} for way in ("from scratch", "fine-tuned", "linear probe")}
    for seed in lab.seeds:
        taught = learn(seed, known, later)
        seen = [
            analysis.embed(model, taught, of, stage="fc1", preprocess=lab.digits.preprocess)
            for of in (lab.digits.train["image"][new], images)
        ]
        for n in shots:
            # The fewer the examples, the more it matters which: a seed's number is the mean over some draws of them.
            keys = jax.random.split(jax.random.key(seed), 1 if lab.tiny else max(1, 10 // n))
            draws = np.stack([analysis.draw_balanced(key, later[new], shots=n) for key in keys])
            probe = analysis.few_shot(seen[0], later[new], draws, seen[1], wanted, num_classes=size)
            found["linear probe"][n].append(float(np.mean(probe)))
            for way, start in (("from scratch", None), ("fine-tuned", taught)):
                right = [accuracy(learn(seed, new[rows], later, start), images, wanted) for rows in draws]
                found[way][n].append(float(np.mean(right)))
    tuned, scratch = found["fine-tuned"], found["from scratch"]
    told = "; ".join(
        f"from {n} of each: " + ", ".join(f"{way} {several(of[n])}" for way, of in found.items()) for n in shots
    )
    few = shots[0]
    return Claim(
        said="Transfer learning mends the hunger for data.",
        found=f"A network that learned the first {half} classes is asked for the other {size}, of which it saw none: "
        "it goes on learning (fine-tuned), or a linear map of what its dense layer says is fitted (linear probe); "
        f"another starts from nothing. Accuracy {told}. The first classes have {len(known):,} images; what "
        "thousands of kinds of photographs teach, experiments.transfer measures.",
        number=f"{several(tuned[few])} fine-tuned, {several(scratch[few])} from scratch, from {few} of each",
        tests=rules.transfer({n: (tuned[n], scratch[n]) for n in shots}),
        figure=draw.lines(found, "labelled examples of each new class", "test accuracy, %"),
        caption="New classes from few labels.",
        numbers={f"transfer_{way}_{n}": interval(of[n])[0] for way, of in found.items() for n in shots},
    )


def over_fitting(lab: Lab) -> Claim:
    """Accuracy on known and new images by their number, and what raises it; and labels that mean nothing."""
    shift = partial(augment.translate, pixels=2)
    ways = {
        "nothing": {"dropout": 0.0},
        "dropout": {"dropout": 0.5},
        "weight decay": {"dropout": 0.0, "weight_decay": 1.0},
        "shifted images": {"dropout": 0.0, "augment": shift},
    }
    shots, steps = lab.shots(10, 100)[: 1 if lab.tiny else None], 3 * lab.steps
    sizes = [n * lab.classes for n in shots]
    gaps, tests = ({way: {size: [] for size in sizes} for way in ways} for _ in range(2))
    for way, options in ways.items():
        model = lab.create(dropout=options["dropout"])
        chosen = {key: value for key, value in options.items() if key != "dropout"}
        learn, accuracy = lab.learner(model, steps=steps, **chosen), lab.scorer(model)
        for n, size in zip(shots, sizes, strict=True):
            for seed in lab.seeds:
                rows = analysis.draw_balanced(jax.random.key(seed), lab.labels, shots=n)
                variables = learn(seed, rows)
                known = accuracy(variables, lab.digits.train["image"][rows], lab.labels[rows])
                tests[way][size].append(accuracy(variables))
                gaps[way][size].append(known - tests[way][size][-1])
    model = lab.create(dropout=0.0)
    learn, accuracy = lab.learner(model, steps=steps), lab.scorer(model)
    rows = np.arange(min(100 if lab.tiny else 400, len(lab.labels)))
    by_heart, chance = [], []
    for seed in lab.seeds:
        drawn = np.random.default_rng(seed).integers(0, lab.classes, len(lab.labels)).astype(np.int32)
        variables = learn(seed, rows, drawn)
        by_heart.append(accuracy(variables, lab.digits.train["image"][rows], drawn[rows]))
        chance.append(accuracy(variables))
    few = sizes[0]
    told = "; ".join(f"with {way} {several(tests[way][few])} (gap {several(gaps[way][few], unit='')})" for way in ways)
    return Claim(
        said="CNNs over-fit small sets; dropout, weight decay and augmentation help.",
        found=f"SimpleCNN learns from {few} images for {steps} steps. Of new images it then names rightly, and the gap "
        f"is by how many points it is better on those it knows: {told}. It can also learn by heart: of "
        f"{len(rows)} images whose labels were drawn by lot it learns {several(by_heart)}, and then names "
        f"{several(chance)} of the test images rightly. Weight decay takes off a thousandth of each weight a step; "
        "other strengths were not tried.",
        number=f"gap {several(gaps['nothing'][few], unit='')} points from {few} images; on new ones "
        + ", ".join(f"{way} {several(of[few])}" for way, of in tests.items()),
        tests=rules.over_fitting(gaps["nothing"][few], {way: of[few] for way, of in tests.items()}),
        figure=draw.lines(tests, "images to learn from", "test accuracy, %"),
        caption="Accuracy on new images.",
        numbers={f"gap_{way}_{n}": interval(of[n])[0] for way, of in gaps.items() for n in sizes}
        | {f"test_{way}_{n}": interval(of[n])[0] for way, of in tests.items() for n in sizes}
        | {"random_labels_train": interval(by_heart)[0], "random_labels_test": interval(chance)[0]},
    )


CLAIMS = {"hunger": hunger, "transfer": transfer, "over_fitting": over_fitting}
