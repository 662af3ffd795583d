"""The order of the training examples, and the random numbers of their augmentation.

Both are functions of the seed and the step, so a resumed run can start at any step.
"""

import functools
from typing import NamedTuple

import numpy as np

_ORDER_STREAM, _AUGMENTATION_STREAM = 2, 3  # separate streams of one seed; label noise has 1


def augmentation_rng(seed: int, step: int) -> np.random.Generator:
    """The random numbers of the augmentation of a step."""
    return np.random.default_rng((seed, _AUGMENTATION_STREAM, step))


class Order(NamedTuple):
    """The examples of each step. Every epoch has a new order and drops an incomplete last batch.

    ``own`` selects the rows of each batch that this process takes if there are several.
    """

    num_examples: int
    batch_size: int
    seed: int
    own: slice = slice(None)

    @property
    def steps_per_epoch(self) -> int:
        return self.num_examples // self.batch_size

    def __call__(self, step: int) -> np.ndarray:
        """The indices of the examples of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self.num_examples, self.seed, epoch)
        return order[place * self.batch_size :][: self.batch_size][self.own]


@functools.lru_cache(maxsize=2)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng((seed, _ORDER_STREAM, epoch)).permutation(num_examples)
    order.flags.writeable = False
    return order
