"""The train step of a network with BatchNorm, of any method, and the state that it takes."""

from collections.abc import Callable
from typing import Any

import jax

import arsam_jax.flax


class TrainState(arsam_jax.flax.TrainState):
    """Also holds the BatchNorm statistics."""

    batch_stats: Any


def train_step(
    state: Any,
    batch: Any,
    previous: Any,
    losses: Callable[[Any, Any], tuple[jax.Array, Any]],
    previous_losses: Callable[[Any, Any], tuple[jax.Array, Any]] | None = None,
    **extra_args: Any,
) -> tuple[Any, jax.Array]:
    """The next state, and the mean loss, with all that a method may ask for.

    Args:
      state: a ``TrainState``.
      batch: with ``index``, which examples it has.
      previous: the batch of the step before.
      losses: ``(params, batch) -> (batch,) losses, new BatchNorm statistics``.
      previous_losses: the same for ``previous``, where its dropout has another key.
      extra_args: further ones for the optimizer.
    """

    def value_and_grad(params, batch=batch, losses=losses):
        def mean_loss(params):
            values, batch_stats = losses(params, batch)
            return values.mean(), batch_stats

        return jax.value_and_grad(mean_loss, has_aux=True)(params)

    def previous_grad_fn(params):
        return value_and_grad(params, previous, previous_losses or losses)[1]

    (loss, batch_stats), grads = value_and_grad(state.params)
    state = state.apply_gradients(
        grads=grads,
        batch_stats=batch_stats,  # of the clean pass: the perturbed one's are dropped
        grad_fn=lambda params: value_and_grad(params)[1],
        previous_grad_fn=previous_grad_fn,
        example_loss_fn=lambda params, some: losses(params, some)[0],
        batch=batch,
        example_index=batch.index,
        extra_args=extra_args,
    )
    return state, loss
