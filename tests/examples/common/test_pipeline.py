"""The order of the training examples."""

import numpy as np

from examples.common import pipeline


def test_an_epoch_has_every_example_except_those_of_an_incomplete_batch():
    order = pipeline.Order(103, 10, seed=1)
    assert order.steps_per_epoch == 10
    for epoch in (0, 3):
        index = np.concatenate([order(10 * epoch + step) for step in range(10)])
        assert len(np.unique(index)) == 100
        assert set(index) < set(range(103))


def test_the_order_is_a_function_of_the_seed_and_the_step():
    order, same, other = (pipeline.Order(1000, 10, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(order(5), same(5))
    assert (order(5) != order(105)).any()
    assert (order(5) != other(5)).any()


def test_augmentation_draws_by_seed_and_step():
    draws = [pipeline.augmentation_rng(*key).random() for key in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
