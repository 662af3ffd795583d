"""A train step for any method, for networks with or without BatchNorm and dropout."""

from collections.abc import Callable
from typing import Any

import jax

import arsam_jax.flax


class TrainState(arsam_jax.flax.TrainState):
    """A state with BatchNorm statistics and the key of dropout, for networks that have them."""

    batch_stats: Any
    key: Any = None


def train_step(
    state: Any,
    batch: Any,
    previous: Any,
    losses: Callable[[Any, Any], tuple[jax.Array, Any]],
    previous_losses: Callable[[Any, Any], tuple[jax.Array, Any]] | None = None,
    **extra_args: Any,
) -> tuple[Any, jax.Array]:
    """Take a step, with all extra arguments that any method uses.

    Args:
      state: A ``TrainState``.
      batch: A mini-batch. Its attribute ``index`` has the numbers of its examples.
      previous: The mini-batch of the previous step.
      losses: A function ``(params, batch) -> (losses, batch_stats)`` with the loss of each example,
        (batch,), and the new BatchNorm statistics.
      previous_losses: The same for ``previous``, if it uses another key of dropout.
      **extra_args: Further extra arguments of the optimizer.

    Returns:
      The new state and the mean loss.
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
        batch_stats=batch_stats,  # Those of the perturbed pass are dropped.
        grad_fn=lambda params: value_and_grad(params)[1],
        previous_grad_fn=previous_grad_fn,
        example_loss_fn=lambda params, some: losses(params, some)[0],
        batch=batch,
        example_index=batch.index,
        extra_args=extra_args,
    )
    return state, loss
