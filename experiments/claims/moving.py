"""Claims on moved images: what pooling keeps, and what is invariant."""

import numpy as np

from cnn_jax import models
from cnn_jax.analysis import translation as moves
from cnn_jax.reporting import comparisons as draw
from cnn_jax.statistics import interval
from experiments.claims.lab import Claim, Lab, clearly_above, several


def pooling(lab: Lab) -> Claim:
    """How steady the answer is under small shifts, by pooling and head, all trained alike."""
    ways = {
        "max, flattened": {},
        "average, flattened": {"pooling": "average"},
        "blur, flattened": {"pooling": "blur"},
        "max, averaged": {"head": "average"},
        "adaptive, averaged": {"pooling": "aps", "head": "average"},
    }
    images, labels = lab.test(64 if lab.tiny else 256)
    kept, accuracy = {}, {}
    for way, options in ways.items():
        model = models.create("simple_cnn", **options)
        learn, score = lab.learner(model), lab.scorer(model)
        kept[way], accuracy[way] = [], []
        for seed in lab.seeds:
            variables = learn(seed)
            accuracy[way].append(score(variables))
            kept[way].append(
                float(moves.heat_map(model, variables, images, labels, reach=3, fill=lab.black).kept.mean())
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


def translation(lab: Lab) -> Claim:
    """Circular padding and a shift by the product of the strides: exact; the real network on moved digits: not."""
    model = models.create("simple_cnn")
    around = models.create("simple_cnn", padding="circular")
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
    differs = f"by more than {exact:.1g} of its size" if exact else "at all"
    return Claim(
        said="CNNs are invariant to translation.",
        found="Two things go by this name. That a convolution's map moves with its image is exact: where images and "
        f"padding go around and the shift is a multiple of the strides, no stage differs {differs}. That the answer "
        f"does not change is another matter: of digits moved on a black ground by {far} pixels {several(rings[far])} "
        f"are named rightly instead of {several(still)}, by {reach} pixels {several(rings[reach])}, for the dense "
        "layer has a weight for each place.",
        number=f"{several(lost)} points lost by {far} pixels; equivariance error {exact:.1g}",
        verdict="does not hold" if exact > 1e-4 else "holds in part" if interval(lost)[0] > 0.01 else "holds",
        figure=draw.heat_map(np.mean([m.accuracy for m in maps], axis=0), reach),
        caption="Test accuracy under each shift, in pixels.",
        numbers={"equivariance_error": exact}
        | {f"accuracy_moved_{d}": interval(values)[0] for d, values in rings.items()},
    )  # fmt: skip


CLAIMS = {"pooling": pooling, "translation": translation}
