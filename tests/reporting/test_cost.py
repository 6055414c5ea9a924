"""The table and the pictures of what networks cost."""

import numpy as np
import pytest

from cnn_jax.reporting import cost

NETWORKS = [
    {"name": "a1", "family": "a", "side": 32, "parameters": 1234, "flops": 5.678e9, "difference": -0.0123},
    {"name": "a2", "family": "a", "side": 600, "parameters": 2_500_000, "flops": 1.2345e12},
]


def test_columns_that_no_network_fills_are_left_out():
    header, rows = cost.table(NETWORKS)
    assert header == ["network", "side", "parameters, M", "GFLOPs", "differs, %"]
    assert rows == [["a1", 32, "0.00123", "5.68", "−1.23"], ["a2", 600, "2.50", "1,234", None]]


@pytest.mark.parametrize("count", [2, 20])
def test_points_are_the_networks_that_have_both_numbers(count):
    networks = [{"name": f"n{i}", "family": f"f{i % 10}", "flops": 1 + i, "kept": 3.0 * i + 1} for i in range(count)]
    figure = cost.scatter([*networks, *NETWORKS], "flops", "kept", titles=("t", "x", "y"))
    (axes,) = figure.axes
    points = np.concatenate([line.get_xydata() for line in axes.lines])
    assert sorted(map(tuple, points)) == [(1 + i, 3.0 * i + 1) for i in range(count)]
    assert [text.get_text() for text in axes.texts] == (["n0", "n1"] if count == 2 else [])
    assert len(figure.legends) == (count > 6)
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(looks) == len(axes.lines)
