"""Gradients of micro-batches for a method whose samples perturb each of them: budgeted_m_sam."""

from collections.abc import Callable

import jax

from arsam_jax import microbatches
from examples.classification import accumulation
from examples.classification.step import LossesFn


def value_and_grad(losses_fn: LossesFn, num_microbatches: int) -> Callable:
    """That of the mean loss, and as a third result the gradient of each micro-batch.

    BatchNorm normalises each by itself, and its statistics are the mean of theirs.
    """

    def of_all(params, batch_stats, batch, key):
        take = microbatches.value_and_grad(
            lambda params, part: losses_fn(params, batch_stats, part, key),
            num_microbatches,
            has_aux=True,
        )
        (loss, (logits, moved)), grads, of_each = take(params, batch)
        return (
            (loss, (accumulation.join(logits), jax.tree.map(lambda x: x.mean(0), moved))),
            grads,
            of_each,
        )

    return of_all
