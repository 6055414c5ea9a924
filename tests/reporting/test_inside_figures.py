"""Maps as colours."""

import numpy as np

from cnn_jax.reporting.inside import heat


def test_signed_maps_diverge_from_white_and_others_rise_from_dark():
    red, white, blue = (heat(np.array([[[2.0, -1.0], [1.0, -1.0], [1.0, -2.0]]]))[0]).astype(int)  # channels are added
    assert red[0] > red[2] + 50
    assert white.min() > 240
    assert blue[2] > blue[0] + 50
    dark, between, bright = heat(np.array([[1.0, 2.0, 3.0]]))[0].astype(int).sum(-1)
    assert dark < 20 < between < bright
    assert (heat(np.ones((2, 2))) == heat(np.ones((2, 2)))[0, 0]).all()  # blank
