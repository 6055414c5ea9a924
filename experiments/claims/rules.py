"""What decides each verdict: for each claim the tests of its numbers, {what is expected: whether it is so}.

Numbers are lists of one value a seed. "Clearly" means that the whole 95 % interval of the differences, seed by seed,
lies on that side.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from cnn_jax.statistics import interval

Verdict = Literal["holds", "holds in part", "does not hold"]
Values = Sequence[float]
Tests = dict[str, bool]


def clearly_above(a: Values | float, b: Values | float, *, by: float = 0.0) -> bool:
    """Whether the mean of the differences, seed by seed, lies above `by` with its whole 95 % interval.

    One of the two may be a number.
    """
    mean, half = interval(np.asarray(a, float) - np.asarray(b, float))
    return bool(mean - half > by)


def judge(tests: Tests) -> Verdict:
    """Holds if all are met, in part if some are, and not if none is."""
    met = sum(tests.values())
    return "holds" if met == len(tests) else "holds in part" if met else "does not hold"


def sharing(cases: Mapping[str, tuple[Values, Values]]) -> Tests:
    """Of the accuracy with shared filters and with others by case, such as "from 100 images, in place"."""
    return {
        f"{case}, shared filters are clearly more accurate than a filter for each place": clearly_above(*pair)
        for case, pair in cases.items()
    }


def hierarchy(edges: Values, probes: Mapping[str, Values]) -> Tests:
    """Of the filters' share of edges, and of the accuracy of a linear map of each stage, in their order."""
    slopes = "clearly more than half of the energy of the first filters is a slope, as an edge detector's is"
    return {slopes: clearly_above(edges, 0.5)} | {
        f"a linear map reads the class clearly better off {after} than off {before}": clearly_above(better, worse)
        for (before, worse), (after, better) in itertools.pairwise(probes.items())
    }


def pooling(right: Mapping[str, Values], accuracy: Values) -> Tests:
    """Of the share of images that are right in place and moved, and of accuracy in place by max pooling, flattened."""
    return {
        f"with max pooling clearly more images are right in place and stay right than with strides, {head}": (
            clearly_above(right[f"max, {head}"], right[f"strides, {head}"])
        )
        for head in ("flattened", "averaged")
    } | {
        "with max pooling, flattened, clearly less than 5 points of the accuracy in place are lost": clearly_above(
            right["max, flattened"], accuracy, by=-0.05
        )
    }


def translation(error: float, lost: Values) -> Tests:
    """Of the error of maps that should move with the image, and of the accuracy that is lost by a shift."""
    return {
        "with circular padding no map of a convolution is off by more than a ten-thousandth of its size": error <= 1e-4,
        "by the shift the network loses clearly less than 1 point of its accuracy": clearly_above(0.01, lost),
    }


def gradient_flow(found: Mapping[str, Values]) -> Tests:
    """Of the part of the gradient that arrives, as powers of ten."""
    vanishes = clearly_above(-3, found["sigmoid"])
    return {
        f"with the sigmoid clearly less than a thousandth of the gradient arrives, with {way} clearly more": (
            vanishes and clearly_above(values, -3)
        )
        for way, values in found.items()
        if way != "sigmoid"
    }


def relu(found: Mapping[str, Values]) -> Tests:
    """Of accuracies by non-linearity."""
    return {
        f"with ReLU it is clearly more accurate than with {name}": clearly_above(found["ReLU"], values)
        for name, values in found.items()
        if name != "ReLU"
    }


def batch_norm(cases: Mapping[str, tuple[Values, Values]]) -> Tests:
    """Of accuracies with batch norm and without, by learning rate."""
    return {f"{case} it is clearly more accurate with batch norm": clearly_above(*pair) for case, pair in cases.items()}


def hunger(few: Values, many: Values, linear: Values) -> Tests:
    """Of accuracies from the fewest labels and from the most, and of a linear map from the fewest."""
    return {
        "from the fewest labels the CNN is clearly below 90 %, and from the most clearly above": (
            clearly_above(0.9, few) and clearly_above(many, 0.9)
        ),
        "from the fewest a linear map of the pixels is clearly more accurate": clearly_above(linear, few),
    }


def transfer(cases: Mapping[int, tuple[Values, Values]]) -> Tests:
    """Of accuracies fine-tuned and from scratch by examples of each class."""
    return {
        f"from {shots} of each class fine-tuning is clearly more accurate than learning from scratch": (
            clearly_above(*pair)
        )
        for shots, pair in cases.items()
    }


def over_fitting(gap: Values, tests: Mapping[str, Values]) -> Tests:
    """Of how much better known images are named than new ones, and of accuracies on new ones by what should help."""
    return {
        "accuracy is clearly more than 5 points higher on known images than on new ones": clearly_above(gap, 0, by=0.05)
    } | {
        f"on new ones it is clearly higher with {way} than with nothing": clearly_above(values, tests["nothing"])
        for way, values in tests.items()
        if way != "nothing"
    }


def cost(networks: Mapping[str, tuple[float, float, float]]) -> Tests:
    """Of the convolutions' share of weights and of FLOPs, and of how often a weight is used for an image."""
    return {
        f"{name}: {expected}": met
        for name, (weights, flops, times) in networks.items()
        for expected, met in (
            ("convolutions have less than half of the weights", weights < 0.5),
            ("they do more than half of the FLOPs", flops > 0.5),
            ("an image takes at least 4 times the FLOPs of dense layers with as many weights", times >= 4),
        )
    }


def fooled(attacked: Values, noise: Values) -> Tests:
    """Of accuracies under PGD and under noise of the same size."""
    return {
        "accuracy is clearly lower under PGD than under noise of the same size": clearly_above(noise, attacked),
        "it is lower by clearly more than 10 points": clearly_above(noise, attacked, by=0.1),
    }


def black_box(found: Mapping[str, Values], bare: Sequence[str]) -> Tests:
    """Of the score by map, low if it finds the pixels that count; those of `bare` know nothing of the network."""
    return {
        f"{name} does not find the pixels that count clearly better than both maps that know nothing of the network": (
            not all(clearly_above(found[one], values) for one in bare)
        )
        for name, values in found.items()
        if name not in bare
    }
