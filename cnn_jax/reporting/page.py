"""What the reports of all tasks have in common: the run's summary, its network, its training, and their page."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from . import plots
from .progress import print_table
from .report import Block, Cards, Code, Details, Figure, Section, Table, write_report
from .trackers import read_metrics, write_json

LAYER_HEADER = ("layer", "type", "output", "parameters", "FLOPs")


def print_network(description) -> None:
    """Prints the table of the layers; see `write` for the argument."""
    print_table("Network", LAYER_HEADER, _layer_rows(description.layers))
    print(
        f"{description.parameters:,} parameters, {description.trainable:,} of them trained; "
        f"{description.flops:,} FLOPs an image\n"
    )


def write_summary(folder: Path, description, metrics: Mapping, *, seconds: float, images_per_second: float) -> dict:
    """Writes `summary.json`, flat: name → number, the metrics as `test_…`, but those that are undefined; returns it."""
    summary = {
        "parameters": description.parameters,
        "trainable_parameters": description.trainable,
        "flops_per_image": description.flops,
        "train_seconds": seconds,
        "images_per_second": images_per_second,
        **{f"test_{name}": value for name, value in metrics.items() if np.ndim(value) == 0 and not np.isnan(value)},
    }
    write_json(Path(folder) / "summary.json", summary)
    return summary


def drawing(folder: Path) -> Callable[..., Figure]:
    """`draw(name, figure, caption)` saves a figure in the run's `figures/` and gives the block for the report."""

    def draw(name: str, figure, caption: str) -> Figure:
        return Figure(plots.save(figure, Path(folder) / "figures" / f"{name}.png"), caption)

    return draw


def write(
    folder: Path,
    *,
    title: str,
    command: str,
    description,
    learning_rate: Callable[[np.ndarray], np.ndarray],
    curves: Sequence[str],
    summary: Mapping[str, float],
    cards: Sequence[tuple],
    data: Sequence[Block],
    results: Sequence[Block],
    inside: Sequence[Block],
) -> Path:
    """Writes `report.html`. The folder holds the run's `config.json` and `metrics.jsonl`.

    Args:
        description: of the network: `layers`, each (name, type, output shape, parameters, FLOPs), and the totals
            `parameters`, `trainable` and `flops`.
        learning_rate: of steps i64[N].
        curves: what to draw of `metrics.jsonl`, such as "loss".
        summary: what `write_summary` returned.
        cards: key figures of the task, (label, value, note) each.
        data, results, inside: blocks of the sections that a task fills.
    """
    folder = Path(folder)
    draw = drawing(folder)
    config, history = json.loads((folder / "config.json").read_text()), read_metrics(folder / "metrics.jsonl")
    layers = description.layers
    note = "FLOPs of one image: two for each multiplication and addition."
    if len({name for name, *_ in layers}) < len(layers):
        note += " A layer that runs again has its parameters in its first row."
    network = [
        Table(LAYER_HEADER, _layer_rows(layers), note),
        f"{int(summary['parameters']):,} parameters, {int(summary['trainable_parameters']):,} of them trained.",
    ]
    train = [record for record in history if record.get("split") == "train"]
    steps = np.array([record["step"] for record in train])
    norms = {
        layer: [record["grad_norm"][layer] for record in train] for layer in (train[0]["grad_norm"] if train else [])
    }
    training = [
        draw(
            "curves",
            plots.curves(history, metrics=curves),
            "The training curves are with dropout and augmentation, where there are any; the test curves without.",
        ),
        draw("gradient_norms", plots.gradient_norms(steps, norms), "How much each layer is asked to change."),
        draw("learning_rate", plots.learning_rate(steps, learning_rate(steps)), "The learning rate."),
        Details("Settings", [Table(["setting", "value"], [[k, str(v)] for k, v in config["settings"].items()])]),
    ]
    parameters = int(summary["parameters"])
    cards = [
        *cards,
        (
            "Parameters",
            f"{parameters:,}" if parameters < 1e6 else f"{parameters / 1e6:.1f} M",
            f"{int(summary['trainable_parameters']):,} trained",
        ),
        ("Training", f"{summary['train_seconds']:.1f} s", f"{summary['images_per_second']:,.0f} images/s"),
    ]
    return write_report(
        folder / "report.html",
        title=title,
        summary=[Cards(cards), Code(command)],
        sections=[
            Section("Data", data),
            Section("Network", network),
            Section("Training", training),
            Section("Results on the test set", results),
            Section("Looking inside", inside),
        ],
        footer=footer(folder),
    )


def footer(folder: Path) -> str:
    """The last line of a report: with what, on what and when the run was made, from its `config.json`."""
    told = json.loads((Path(folder) / "config.json").read_text())["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    return f"Python {told['python']}, {versions}; {told['devices']}, {told['cores']} cores; {told['started']}"


def stage_blocks(draw: Callable[..., Figure], image: np.ndarray, stages: Mapping[str, np.ndarray]) -> list[Block]:
    """The first maps of each stage f32[H,W,C] of one image, side by side, and all of them folded away."""
    side = plots.feature_maps_side_by_side(stages, image, title="Feature maps of each stage")
    grids = [
        draw(f"feature_maps_{name.replace('/', '_')}", plots.feature_maps(maps, image=image, title=name), name)
        for name, maps in stages.items()
    ]
    return [
        "What the network computes on the way to its answer.",
        draw("feature_maps", side, f"The first four feature maps of {', '.join(stages)}."),
        Details("All feature maps", grids),
    ]


def _layer_rows(layers: Sequence) -> list[list]:
    return [
        [name, kind, " × ".join(map(str, shape)), parameters, flops] for name, kind, shape, parameters, flops in layers
    ]
