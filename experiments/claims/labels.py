"""Claims on labels: how many are needed, and what becomes of a network that has too few."""

from functools import partial

import jax
import numpy as np

from cnn_jax import analysis, models
from cnn_jax.data import augment
from cnn_jax.reporting import comparisons as draw
from cnn_jax.statistics import interval
from experiments.claims.lab import Claim, Lab, clearly_above, means, several


def hunger(lab: Lab) -> Claim:
    sizes = [n for n in (10, 40, 160, 640) if 10 * n <= len(lab.labels)][: 2 if lab.tiny else None]
    model = models.create("simple_cnn")
    learn, accuracy = lab.learner(model), lab.scorer(model)
    found = {}
    for n in sizes:
        rows = [analysis.draw_balanced(jax.random.key(seed), lab.labels, shots=n) for seed in lab.seeds]
        found[10 * n] = [accuracy(learn(seed, chosen)) for seed, chosen in zip(lab.seeds, rows, strict=True)]
    few, many = found[10 * sizes[0]], found[10 * sizes[-1]]
    return Claim(
        said="CNNs need many labelled examples.",
        found=f"SimpleCNN learns for {lab.steps} steps from {10 * sizes[0]:,} to {10 * sizes[-1]:,} digits. From the "
        f"fewest it names {several(few)} of the test digits rightly, from the most {several(many)}: on a logarithmic "
        "scale each further per cent costs a multiple of the labels of the one before. On images so simple a few "
        "hundred go a long way.",
        number=f"{several(few)} from {10 * sizes[0]:,}, {several(many)} from {10 * sizes[-1]:,}",
        verdict="holds" if clearly_above(many, few) else "does not hold",
        figure=draw.lines({"SimpleCNN": found}, "labelled digits", "test accuracy, %"),
        caption="Accuracy by the number of labelled digits.",
        numbers=means({str(n): values for n, values in found.items()}, "hunger"),
    )


def transfer(lab: Lab) -> Claim:
    """Digits 0 to 4 are learned from many labels, 5 to 9 from few: with what the first taught, or without."""
    model = models.create("simple_cnn", num_classes=5)
    known, new = np.flatnonzero(lab.labels < 5), np.flatnonzero(lab.labels >= 5)
    test = np.flatnonzero(lab.test_labels >= 5)
    later = np.where(lab.labels >= 5, lab.labels - 5, lab.labels)
    images, wanted = lab.digits.test["image"][test], lab.test_labels[test] - 5
    learn, accuracy = lab.learner(model, classes=5), lab.scorer(model)
    shots = (1, 5) if lab.tiny else (1, 5, 20)
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
            probe = analysis.few_shot(seen[0], later[new], draws, seen[1], wanted, num_classes=5)
            found["linear probe"][n].append(float(np.mean(probe)))
            for way, start in (("from scratch", None), ("fine-tuned", taught)):
                right = [accuracy(learn(seed, new[rows], later, start), images, wanted) for rows in draws]
                found[way][n].append(float(np.mean(right)))
    few, many = shots[0], shots[-1]
    better = [clearly_above(found["fine-tuned"][n], found["from scratch"][n]) for n in shots]
    told = {n: ", ".join(f"{way} {several(of[n])}" for way, of in found.items()) for n in (few, many)}
    return Claim(
        said="Transfer learning mends the hunger for data.",
        found="A network that learned the digits 0 to 4 is asked for 5 to 9, of which it saw none: it goes on learning "
        "(fine-tuned), or a linear map of what its dense layer says is fitted (linear probe); another starts from "
        f"nothing. From {few} example{'s' * (few > 1)} of each: {told[few]}. From {many}: {told[many]}. What five "
        "digits teach is little for five others; between thousands of photographs and new ones it is much, as "
        "experiments.transfer measures.",
        number=f"{several(found['fine-tuned'][few])} for {several(found['from scratch'][few])}, from {few} of each",
        verdict="holds" if all(better) else "holds in part" if any(better) else "does not hold",
        figure=draw.lines(found, "labelled examples of each new digit", "test accuracy, %"),
        caption="New digits from few labels.",
        numbers={f"transfer_{way}_{n}": interval(of[n])[0] for way, of in found.items() for n in shots},
    )


def over_fitting(lab: Lab) -> Claim:
    """The gap between training and test by number of examples, and what narrows it; and labels that mean nothing."""
    shift = partial(augment.translate, pixels=2)
    ways = {
        "nothing": {"dropout": 0.0},
        "dropout": {"dropout": 0.5},
        "weight decay": {"dropout": 0.0, "weight_decay": 0.1},
        "shifted images": {"dropout": 0.0, "augment": shift},
    }
    sizes = (50,) if lab.tiny else (100, 400, 1600)
    gaps, tests = ({way: {n: [] for n in sizes} for way in ways} for _ in range(2))
    for way, options in ways.items():
        model = models.create("simple_cnn", dropout=options["dropout"])
        learn = lab.learner(model, **{key: value for key, value in options.items() if key != "dropout"})
        accuracy = lab.scorer(model)
        for n in sizes:
            for seed in lab.seeds:
                rows = analysis.draw_balanced(jax.random.key(seed), lab.labels, shots=n // 10)
                variables = learn(seed, rows)
                known = accuracy(variables, lab.digits.train["image"][rows], lab.labels[rows])
                tests[way][n].append(accuracy(variables))
                gaps[way][n].append(known - tests[way][n][-1])
    model = models.create("simple_cnn", dropout=0.0)
    learn, accuracy = lab.learner(model, steps=2 * lab.steps), lab.scorer(model)
    rows = np.arange(100 if lab.tiny else 400)
    by_heart, chance = [], []
    for seed in lab.seeds:
        drawn = np.random.default_rng(seed).integers(0, 10, len(lab.labels)).astype(np.int32)
        variables = learn(seed, rows, drawn)
        by_heart.append(accuracy(variables, lab.digits.train["image"][rows], drawn[rows]))
        chance.append(accuracy(variables))
    few, many = sizes[0], sizes[-1]
    helps = [way for way in ways if way != "nothing" and clearly_above(gaps["nothing"][few], gaps[way][few])]
    listed = ", ".join(f"{way} {several(gaps[way][few])}" for way in ways if way != "nothing")
    return Claim(
        said="CNNs over-fit small sets; dropout, weight decay and augmentation help.",
        found=f"Trained on {few} digits SimpleCNN is better on them than on new ones by "
        f"{several(gaps['nothing'][few])} (in points), on {many:,} by {several(gaps['nothing'][many])}. With {listed}. "
        f"And it can learn by heart: of "
        f"{len(rows)} digits whose labels were drawn by lot it learns {several(by_heart)}, and then names "
        f"{several(chance)} of the test digits rightly.",
        number=f"gap {several(gaps['nothing'][few])} with {few} digits; helps: {', '.join(helps) or 'nothing'}",
        verdict=(
            "does not hold"
            if interval(gaps["nothing"][few])[0] < 0.02
            else "holds" if len(helps) == 3 else "holds in part"
        ),
        figure=draw.lines(gaps, "digits to learn from", "training minus test accuracy, points"),
        caption="The gap between what is known and what is new.",
        numbers={f"gap_{way}_{n}": interval(of[n])[0] for way, of in gaps.items() for n in sizes}
        | {f"test_{way}_{n}": interval(of[n])[0] for way, of in tests.items() for n in sizes}
        | {"random_labels_train": interval(by_heart)[0], "random_labels_test": interval(chance)[0]},
    )  # fmt: skip


CLAIMS = {"hunger": hunger, "transfer": transfer, "over_fitting": over_fitting}
