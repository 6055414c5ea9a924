"""Is a CNN invariant to translation? What is exact, what is not, and what pooling, padding and head change.

    python -m experiments.translation                    # digits; some minutes on two CPU cores
    python -m experiments.translation --dataset fashion_mnist --reach 14

Trains SimpleCNN with each pooling and head, and measures: how far each stage is from moving with its image (with
circular padding, zero where theory says zero, and as it was trained); accuracy and steadiness of the answer under every
shift by whole pixels; under shifts between pixels; and under rotation and scale. Mean and 95 % interval over seeds.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from cnn_jax import cli, data, models, reporting, runtime
from cnn_jax.analysis import translation
from cnn_jax.reporting import comparisons as draw
from cnn_jax.reporting import page
from cnn_jax.reporting.report import Code, Section, Table, write_report
from cnn_jax.run import Run, default_path
from experiments.claims.lab import Lab, several

WAYS = {
    "max, flattened": {},
    "max, averaged": {"head": "average"},
    "blur, flattened": {"pooling": "blur"},
    "blur, averaged": {"pooling": "blur", "head": "average"},
    "adaptive, flattened": {"pooling": "aps"},
    "adaptive, averaged": {"pooling": "aps", "head": "average"},
}
STAGES = ("conv1", "conv2", "logits")
AXES = {
    "rotation": "rotation, degrees",
    "scale": "scale, times",
    "shift between pixels": "shift down and to the right, pixels",
}
SHOWN = {"accuracy": "Accuracy", "probability": "Probability of the true class"}  # as maps of all shifts
LEARNING_RATE = 3e-3  # averaged heads learn slowly: 58 % after 400 steps at 0.001


@dataclass(frozen=True)
class Config:
    """Move images, and see what a network makes of it."""

    dataset: str = "mnist_10k"  # a small set of images
    seeds: int = 3
    steps: int = 1200  # of each training
    images: int = 200  # of the test split
    reach: int = 8  # of the heat maps, in pixels
    platform: Literal["cpu", "gpu", "tpu"] | None = None  # insist on it
    data_dir: Path | None = None  # where prepared data sets are
    out: Path | None = None  # the run's folder; runs/translation by default, or the next that is free
    tiny: bool = False  # two ways, two seeds, a few steps


def main(config: Config) -> None:
    runtime.configure(platform=config.platform)
    cli.at_least(config, seeds=2, steps=1, images=1, reach=1)  # two for an interval
    dataset, reach, count, ways = data.load(config.dataset, data_dir=config.data_dir), config.reach, config.images, WAYS
    lab = Lab(dataset, seeds=config.seeds, steps=config.steps)
    if config.tiny:
        lab = Lab(dataset.head(train=256, test=64), seeds=2, steps=2, batch_size=16)
        reach, count, ways = 1, 16, dict(list(WAYS.items())[:1] + list(WAYS.items())[-1:])
    run = Run(config.out or default_path(Path("runs/translation")), vars(config))
    (images, labels), fill = lab.test(count), lab.black
    angles, factors, parts = np.linspace(-60, 60, 9), np.geomspace(0.5, 2, 9), np.linspace(0, 2, 9)
    curves = {
        "rotation": (partial(translation.rotate, fill=fill), angles),
        "scale": (partial(translation.scale, fill=fill), factors),
        "shift between pixels": (translation.shift_between, np.stack([parts, parts], 1)),
    }
    if config.tiny:
        curves = {"rotation": (curves["rotation"][0], angles[::4])}
    found = {way: {"accuracy": [], "kept": [], "consistency": []} for way in ways}
    maps, of_curves = {}, {curve: {way: {} for way in ways} for curve in curves}
    errors = {way: {(padding, stage): [] for padding in ("circular", "zeros") for stage in STAGES} for way in ways}
    for way, options in ways.items():
        model = models.create("simple_cnn", num_classes=dataset.num_classes, **options)
        learn, score, drawn = lab.learner(model, learning_rate=LEARNING_RATE), lab.scorer(model), []
        for seed in lab.seeds:
            variables = learn(seed)
            seen = translation.heat_map(model, variables, images, labels, reach=reach, fill=fill)
            drawn.append([seen.accuracy, seen.probability])
            kept = seen.kept[(seen.down[:, None] != 0) | (seen.right[None] != 0)]  # unmoved, every answer is
            for name, value in (("accuracy", score(variables)), ("kept", kept), ("consistency", seen.consistency)):
                found[way][name].append(float(np.mean(value)))
            for padding, kind, shifts, ground in (
                ("circular", "circular", [(4, 0), (0, 8), (12, 4)], None),
                ("zeros", "torch", [(1, 0), (0, 3), (2, 2)], fill),
            ):
                moved = translation.equivariance(
                    model.clone(padding=kind), variables, images[:32], shifts, names=STAGES, fill=ground
                )
                for stage, values in moved.items():
                    errors[way][padding, stage].append(float(np.mean(values)))
            for curve, (transform, amounts) in curves.items():
                said = translation.respond(model, variables, images, labels, transform, amounts)
                for amount, correct in zip(amounts, said.correct.mean(1), strict=True):
                    of_curves[curve][way].setdefault(float(np.max(amount)), []).append(float(correct))
        maps[way] = np.mean(drawn, axis=0)
        print(f"{way}: {several(found[way]['kept'])} of answers kept", flush=True)
    rows = [[way, *(several(of[name]) for name in ("accuracy", "kept", "consistency"))] for way, of in found.items()]
    small = {"scale": 1, "unit": "", "digits": 7}
    moving = [
        [w, p, *(several(errors[w][p, stage], **small) for stage in STAGES)]
        for w in ways
        for p in ("circular", "zeros")
    ]
    header = ["pooling, head", "accuracy", "answers kept", "consistency"]
    figure = page.drawing(run.path)
    path = write_report(
        run.path / "report.html",
        title=f"Moved images: SimpleCNN on {dataset.name}",
        summary=[Code(cli.command("translation"))],
        sections=[
            Section("Answers", [
                Table(header, rows, f"Of images moved by up to {reach} pixels; mean and 95 % interval over seeds."),
                *(figure(f"{what}_{i}", draw.heat_map(of, reach), f"{said} by shift, in per cent: {way}.")
                  for i, (way, both) in enumerate(maps.items())
                  for (what, said), of in zip(SHOWN.items(), both, strict=True)),
            ]),
            Section("Stages", [
                expected(dataset.image_shape[:2]),
                Table(["pooling, head", "padding", *STAGES], moving),
            ]),
            Section("Beyond shifts", [
                figure(
                    name.replace(" ", "_"),
                    draw.lines(of, AXES[name], "accuracy, %", log=False),
                    f"Accuracy by {name}.",
                )
                for name, of in of_curves.items()
            ]),
        ],
        footer=page.footer(run.path),
    )  # fmt: skip
    summary = {f"{way} {name}": values for way, of in found.items() for name, values in of.items()}
    summary |= {f"{way} {kind} {stage} error": v for way, of in errors.items() for (kind, stage), v in of.items()}
    summary = {name.replace(" ", "_"): float(np.mean(values)) for name, values in summary.items()}
    reporting.write_json(run.path / "summary.json", summary)
    reporting.print_table("Answers under shifts", header, rows)
    reporting.print_table("Distance from moving with the image", ["pooling, head", "padding", *STAGES], moving)
    print(f"report: {path}")


def expected(sides: tuple[int, int]) -> str:
    """What theory says of the stages of SimpleCNN, which halves its maps twice."""
    exact = "conv1 and conv2, and in the logits where the head averages: flattened, they depend on the place"
    if any(side % 4 for side in sides):
        exact = "conv1" if any(side % 2 for side in sides) else "conv1 and conv2"
        exact += f" alone: of images of {sides[0]}×{sides[1]}, no multiples of four, pooling leaves out the last pixels"
    return (
        "How far a stage is from moving with its image, in parts of its size. With circular padding, shifts by "
        f"multiples of four and images that roll around, it is rounding alone in {exact}. With zeros around, a black "
        "ground and any shift it is not."
    )


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
