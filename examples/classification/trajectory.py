"""What SAF, MESA and SAMPa look back at: logits, averaged weights, the batch of the step before.

Other methods have None there, and nothing here changes their step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from arsam_jax.trajectory import MESA_DECAY, LogitMemory, mesa_loss
from examples.classification.step import Batch, LossesFn, mean_of


class MovingAverage(NamedTuple):
    """The averaged weights of MESA."""

    params: Any


class PreviousBatch(NamedTuple):
    """The images and labels of the step before, as the model saw them, for SAMPa."""

    images: Any
    labels: Any


Trajectory = LogitMemory | MovingAverage | PreviousBatch | None


def start(
    method: str, params: Any, batch_shape: tuple[int, ...], num_examples: int, num_classes: int
) -> Trajectory:
    """Before the first step; ``batch_shape`` is that of a batch of images."""
    match method:
        case "saf":
            return LogitMemory.create(num_examples, num_classes)
        case "mesa":
            return MovingAverage(jax.tree.map(jnp.copy, params))
        case "sampa":
            return PreviousBatch(
                jnp.zeros(batch_shape, jnp.float32), jnp.zeros(batch_shape[0], jnp.int32)
            )
    return None


def loss_with_term(losses_fn: LossesFn, trajectory: Trajectory, epoch: ArrayLike) -> Callable:
    """``mean_of(losses_fn)``, and for SAF and MESA the term that compares with the trajectory."""
    loss_fn = mean_of(losses_fn)

    def with_term(params, batch_stats, batch, key):
        loss, (logits, new_stats) = loss_fn(params, batch_stats, batch, key)
        match trajectory:
            case LogitMemory() as memory:
                loss = loss + memory.loss(batch.index, epoch, logits)
            case MovingAverage(average):
                _, (past_logits, _) = losses_fn(average, batch_stats, batch, key)
                loss = loss + mesa_loss(past_logits, logits, epoch)
        return loss, (logits, new_stats)

    return with_term


def extra_args(
    state: Any, batch: Batch, key: jax.Array, previous_key: jax.Array, value_and_grad: Callable
) -> dict[str, Callable]:
    """What SAMPa asks for: the gradient of the batch before, with the dropout key that it had.

    In the first step it is that of the batch itself.
    """
    if not isinstance(state.trajectory, PreviousBatch):
        return {}
    images, labels, key = jax.tree.map(
        lambda now, before: jnp.where(state.step == 0, now, before),
        (batch.images, batch.labels, key),
        (*state.trajectory, previous_key),
    )
    previous = Batch(images, labels, batch.index)
    return {
        "previous_grad_fn": lambda params: value_and_grad(params, state.batch_stats, previous, key)[
            1
        ]
    }


def update(
    trajectory: Trajectory, params: Any, batch: Batch, epoch: ArrayLike, logits: jax.Array
) -> Trajectory:
    """After a step that ended at ``params``."""
    match trajectory:
        case LogitMemory() as memory:
            return memory.write(batch.index, epoch, logits)
        case MovingAverage(average):
            return MovingAverage(optax.incremental_update(params, average, 1 - MESA_DECAY))
        case PreviousBatch():
            return PreviousBatch(batch.images, batch.labels)
    return None
