"""What the stages of a network hold, for a report: how alive they are, what can be read off them, what excites them."""

from collections.abc import Callable

import jax
import numpy as np

from cnn_jax import analysis, data, reporting
from cnn_jax.analysis import receptive, similarity
from cnn_jax.reporting import inside
from cnn_jax.reporting.report import Block, Table
from experiments.explained import Explained
from experiments.runs import normalised

UNITS, PATCHES = 8, 4


def blocks(
    key: jax.Array,
    found: Explained,
    stage: str,
    draw: Callable,
    *,
    dataset: data.Dataset | None,
    steps: int,
    shown: int,
) -> list[Block]:
    """A table of all stages, and figures of the units of one and of how alike stages are.

    Args:
        stage: the one whose units are shown, [N,h,w,C].
        draw: as `reporting.page.drawing` gives it.
        dataset: of a classifier, to read classes off its stages; None leaves that out.
        steps: of the ascent to images that excite units.
        shown: images of the data set, of each split, that the probes learn from and are tested on.
    """
    model, variables, images = found.model, found.variables, np.asarray(found.images)
    activity = analysis.activity(model, variables, images, batch_size=16)
    table = {
        name: [len(of.largest), f"{of.dead:.1%}", f"{of.sparsity:.1%}", of.effective_rank]
        for name, of in activity.items()
    }
    header = ["stage", "channels", "dead", "not above zero", "effective rank"]
    note = f"Over {len(images)} images."
    if dataset:
        splits = (dataset.rows(split, np.arange(min(shown, dataset.size(split)))) for split in ("train", "test"))
        train, test = ((rows["image"], rows["label"]) for rows in splits)
        probes = analysis.probe_stages(
            model, variables, train, test, num_classes=dataset.num_classes, preprocess=dataset.preprocess
        )
        table = {name: [*row, f"{probes[name]:.1%}"] for name, row in table.items()}
        header.append("linear probe")
        note += f" Linear probes: what a linear classifier reads off a stage, learned from {len(train[0]):,} images of "
        note += f"the training split; accuracy on {len(test[0]):,} of the test split."

    noise = jax.random.normal(key, (4, *images.shape[1:]))
    fields = {
        name: receptive.effective(model, variables, noise, stage=name)
        for name, shape in found.shapes.items()
        if len(shape) == 4 and shape[1:3] != (1, 1)
    }
    extents = {name: receptive.extent(counts) for name, counts in fields.items()}
    sizes = {name: [f"{box[0]}×{box[1]}", f"{side:.1f}"] for name, (box, side) in extents.items()}
    table = {name: [*row, *sizes.get(name, ["all", ""])] for name, row in table.items()}
    header += ["sees", "effectively"]
    note += f" Sees: on which pixels of {images.shape[1]}×{images.shape[2]} a unit in the middle depends; effectively: "
    note += "the side of a square of as many as count at least 4.55 % of what counts most."

    units = awake(key, found, stage)
    field = receptive.measured(model, variables, noise, stage=stage)
    strongest = analysis.exciting(
        model, variables, images, stage=stage, units=units, count=min(PATCHES, len(images)), batch_size=16
    )
    patches = receptive.patches(found.raw, strongest, field)
    climbed = analysis.visualise(
        key, analysis.unit_score(model, variables, stage=stage, units=units), shape=(len(units), *images.shape[1:]),
        preprocess=lambda x: normalised(x, found.about), steps=steps,
    )  # fmt: skip
    grid = reporting.plots.image_grid
    titles = [f"unit {unit}" for unit in units]
    figures = [
        draw(
            "fields",
            grid(
                np.stack([inside.heat(counts) for counts in fields.values()]),
                [f"{name}\n{sizes[name][0]}" for name in fields],
                columns=min(8, len(fields)),
                wide=len(fields) > 4,
            ),
            "What a unit in the middle of each stage sees: how much each pixel counts for it, the mean of the absolute "
            "gradient over noise. Bright pixels count; black ones do not.",
        ),
        draw(
            "patches",
            grid(
                patches.swapaxes(0, 1).reshape(-1, *patches.shape[2:]),
                [*titles, *[""] * (patches[:, 0].shape[0] * (patches.shape[1] - 1))],
                columns=len(units),
                wide=True,
            ),
            f"What excites units of {stage} most in these images, the strongest above: the {field.size[0]}×"
            f"{field.size[1]} pixels that a unit sees there, as its gradient shows on noise.",
        ),
        draw(
            "units",
            grid(np.asarray(climbed.images), titles, wide=True),
            f"Images made to excite units of {stage}, those that noise, from which they start, excites most.",
        ),
    ]
    if len(images) >= 4:
        alike = similarity.compare((model, variables), (model, variables), images, batch_size=64)
        figures.append(draw(
            "similarity",
            inside.similarity(alike.first, alike.values),
            f"How alike stages are: linear centred kernel alignment over {len(images)} images, without bias.",
        ))  # fmt: skip
    return [Table(header, [[name, *row] for name, row in table.items()], note), *figures]


def awake(key: jax.Array, found: Explained, stage: str) -> np.ndarray:
    """Up to eight channels of a stage that no noise to climb from leaves silent: then there would be no gradient."""
    noise = normalised(np.asarray(analysis.starting_noise(key, (8, *found.raw.shape[1:]))), found.about)
    answers = analysis.capture(found.model, found.variables, noise, names=stage)[stage]
    return np.argsort(-np.asarray(answers, np.float32).mean((1, 2)).min(0), kind="stable")[:UNITS]
