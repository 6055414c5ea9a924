"""The order of the data: every row once an epoch, and a function of (seed, step) alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cnn_jax.training.order import Order, in_order

sizes = st.integers(1, 40)


@given(sizes, sizes, st.integers(0, 2**31), st.integers(0, 30), st.integers(0, 30))
def test_any_window_is_a_piece_of_the_whole(size, batch_size, seed, first, length):
    order = Order(size, batch_size, seed)
    whole = order.rows(0, 61)
    if length:
        np.testing.assert_array_equal(order.rows(first, first + length), whole[first : first + length])
    epochs = whole.ravel()[: whole.size // size * size].reshape(-1, size)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (len(epochs), 1)))


def test_epochs_and_seeds_differ():
    epochs = Order(100, 50, 0).rows(0, 4).reshape(2, 100)
    assert (epochs[0] != epochs[1]).any()
    assert (epochs != Order(100, 50, 1).rows(0, 4).reshape(2, 100)).any()


@given(sizes, sizes)
def test_in_order_pads_and_drops_nothing(size, batch_size):
    rows = in_order(size, batch_size).ravel()
    assert rows[:size].tolist() == list(range(size))
    assert (rows[size:] == -1).all()
    assert len(rows) - size < batch_size
