import numpy as np
import pytest
from scipy.stats import t

from cnn_jax.reporting import comparisons


def test_lines_are_means_with_their_intervals():
    seeds = {1: [0.2, 0.4, 0.9], 20: [0.5, 0.5, 0.5]}
    figure = comparisons.lines({"a": seeds, "b": seeds}, "layer", "accuracy, %", log=False, chance=0.1)
    (axes,) = figure.axes
    line, _, (whiskers,) = axes.containers[0]
    np.testing.assert_allclose(line.get_xydata(), [[1, 50], [20, 50]])
    half = 100 * t.ppf(0.975, 2) * np.std(seeds[1], ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(whiskers.get_segments()[0], [[1, 50 - half], [1, 50 + half]])
    assert axes.get_ylim() == (-4, 104)  # where the interval reaches beyond
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["chance", "a", "b"]


@pytest.mark.parametrize(("places", "whole"), [((1, 20), True), ((0, 0.5), False)])
def test_whole_places_have_whole_ticks(places, whole):
    figure = comparisons.lines({"a": {place: [0.1, 0.2] for place in places}}, "x", "y", log=False)
    figure.draw_without_rendering()
    ticks = figure.axes[0].get_xticks()
    assert (ticks == ticks.round()).all() == whole


def test_a_heat_map_has_upward_shifts_above():
    values = np.zeros((3, 3))
    values[0, 2] = 0.5  # a pixel up, which is down by -1, and one to the right
    figure = comparisons.heat_map(values, 1)
    (image,) = figure.axes[0].images
    left, right, bottom, top = image.get_extent()
    assert (left, right, bottom, top) == (-1.5, 1.5, 1.5, -1.5)
    assert figure.axes[0].get_ylim() == (1.5, -1.5)
    assert image.get_array()[0, 2] == 50
    assert image.get_clim() == (0, 100)  # as in every other map
    figure.draw_without_rendering()
    for ticks in (figure.axes[0].get_xticks(), figure.axes[0].get_yticks()):
        assert (ticks == ticks.round()).all()  # shifts are of whole pixels
