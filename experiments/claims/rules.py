"""What decides each verdict: for each claim a pure function of its numbers.

Its docstring is the sentence that the page prints under the verdict. Numbers are lists of one value a seed. "Clearly"
means that the whole 95 % interval of the differences, seed by seed, lies on that side.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from cnn_jax.statistics import interval

Verdict = Literal["holds", "holds in part", "does not hold"]
Values = Sequence[float]


def clearly_above(a: Values | float, b: Values | float, *, by: float = 0.0) -> bool:
    """Whether the mean of the differences, seed by seed, lies above `by` with its whole 95 % interval.

    One of the two may be a number.
    """
    mean, half = interval(np.asarray(a, float) - np.asarray(b, float))
    return bool(mean - half > by)


def judge(tests: Iterable[bool]) -> Verdict:
    """Holds if all are met, in part if some are, and not if none is."""
    tests = list(tests)
    return "holds" if all(tests) else "holds in part" if any(tests) else "does not hold"


def sharing(pairs: Iterable[tuple[Values, Values]]) -> Verdict:
    """Holds if shared filters are clearly more accurate than a filter for each place with every number of labels, on
    images in place and moved; in part if in some of these cases, and not if in none."""
    return judge(clearly_above(shared, apart) for shared, apart in pairs)


def hierarchy(edges: Values, probes: Sequence[Values]) -> Verdict:
    """Holds if clearly more than half of the energy of the first filters is a slope, as an edge detector's is, and a
    linear map reads the class clearly better off each stage than off the one before; in part if some of this is so, and
    not if nothing is."""
    rises = [clearly_above(after, before) for before, after in itertools.pairwise(probes)]
    return judge([clearly_above(edges, 0.5), *rises])


def pooling(right: Mapping[str, Values], accuracy: Values) -> Verdict:
    """Holds if with max pooling clearly more images are right in place and stay right than with strides, both under a
    flattened and under an averaged head, and if with max pooling and a flattened head clearly less than 5 points of the
    accuracy in place are lost; in part if some of the three are so, and not if none is."""
    return judge(
        [
            clearly_above(right["max, flattened"], right["strides, flattened"]),
            clearly_above(right["max, averaged"], right["strides, averaged"]),
            clearly_above(right["max, flattened"], accuracy, by=-0.05),
        ]
    )


def translation(error: float, lost: Values) -> Verdict:
    """Holds if with circular padding no map of a convolution is off by more than a ten-thousandth of its size, and if
    the real network loses clearly less than 1 point of its accuracy by the shift; in part if one of the two is so, and
    not if neither is."""
    return judge([error <= 1e-4, clearly_above(0.01, lost)])


def gradient_flow(sigmoid: Values, others: Iterable[Values]) -> Verdict:
    """Holds if with the sigmoid clearly less than a thousandth of the gradient arrives and with each of the three
    others clearly more; in part if with some of them, and not if with none or if the sigmoid lets a thousandth
    through."""
    vanishes = clearly_above(-3, sigmoid)
    return judge(vanishes and clearly_above(other, -3) for other in others)


def relu(found: Mapping[str, Values]) -> Verdict:
    """Holds if ReLU is clearly more accurate than tanh, than the sigmoid and than no non-linearity, each at the rate
    that did best with a seed of its own; in part if than some of them, and not if than none."""
    return judge(clearly_above(found["ReLU"], values) for name, values in found.items() if name != "ReLU")


def batch_norm(best: tuple[Values, Values], largest: tuple[Values, Values]) -> Verdict:
    """Holds if the network with batch norm is clearly more accurate after as many steps, both at the rate that did best
    for each with a seed of its own and at the largest rate; in part if at one of the two, and not if at neither."""
    return judge(clearly_above(*pair) for pair in (best, largest))


def hunger(few: Values, many: Values, linear: Values) -> Verdict:
    """Holds if from the fewest labels the CNN is clearly below 90 % and from the most clearly above, and if from the
    fewest a linear map of the pixels is clearly better; in part if one of the two is so, and not if neither is."""
    return judge([clearly_above(0.9, few) and clearly_above(many, 0.9), clearly_above(linear, few)])


def transfer(pairs: Iterable[tuple[Values, Values]]) -> Verdict:
    """Holds if from every number of labels fine-tuning is clearly more accurate than learning from scratch; in part if
    from some, and not if from none."""
    return judge(clearly_above(tuned, scratch) for tuned, scratch in pairs)


def over_fitting(gap: Values, plain: Values, helped: Iterable[Values]) -> Verdict:
    """Holds if from the fewest images accuracy on them is clearly more than 5 points above that on new ones, and if
    with dropout, with weight decay and with augmentation accuracy on new ones is clearly higher than with nothing; in
    part if some of the four are so, and not if none is."""
    return judge([clearly_above(gap, 0, by=0.05), *(clearly_above(values, plain) for values in helped)])


def cost(shares: Iterable[tuple[float, float]], reuse: Iterable[float]) -> Verdict:
    """Holds if in both networks the convolutions have less than half of the weights and more than half of the FLOPs,
    and if an image takes at least 4 times the FLOPs of dense layers with as many weights; in part if some of these six
    are so, and not if none is."""
    tests = [test for weights, flops in shares for test in (weights < 0.5, flops > 0.5)]
    return judge([*tests, *(times >= 4 for times in reuse)])


def fooled(attacked: Values, noise: Values) -> Verdict:
    """Holds if under PGD accuracy is clearly more than 10 points below that under noise of the same size; in part if it
    is clearly below it at all, and not otherwise."""
    return judge([clearly_above(noise, attacked, by=0.1), clearly_above(noise, attacked)])


def black_box(methods: Iterable[Values], bare: Sequence[Values]) -> Verdict:
    """Does not hold if each of the four methods finds the pixels that count clearly better than a random map and than
    an edge detector, which know nothing of the network; in part if some do, and holds if none does."""
    return judge(not all(clearly_above(one, method) for one in bare) for method in methods)
