"""The train step of an image classifier with any method.

It handles BatchNorm, dropout, batches in parts, the micro-batches of ``budgeted_sam``, and the
terms of SAF and MESA.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

import arsam_jax.flax
from arsam_jax import microbatches
from arsam_jax.trajectory import MESA_DECAY, LogitMemory, mesa_loss


class Batch(NamedTuple):
    """Images (n, height, width, channels), labels (n,) and ``index`` (n,), both int32.

    The index is the position of an example in the training set.
    """

    images: Any
    labels: Any
    index: Any


class TrainState(arsam_jax.flax.TrainState):
    """Also holds the BatchNorm statistics and what SAF and MESA compare with.

    Attributes:
      key: of dropout and augmentation in all steps.
      trajectory: for SAF a ``LogitMemory``, for MESA the averaged parameters.
    """

    batch_stats: Any
    key: jax.Array
    trajectory: Any = None
    method: str = flax.struct.field(pytree_node=False, default="base")


LossesFn = Callable[..., tuple[jax.Array, tuple[jax.Array, Any]]]
"""``losses_fn(params, batch_stats, batch, key) -> losses (n,), (logits, new batch_stats)``."""


def make_losses_fn(apply_fn: Callable) -> LossesFn:
    """The cross-entropy of each example in float32, in training mode.

    Args:
      apply_fn: of a Flax Linen model that takes ``is_training``.
    """

    def losses_fn(params, batch_stats, batch, key):
        logits, new_variables = apply_fn(
            {"params": params, "batch_stats": batch_stats},
            batch.images,
            is_training=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        logits = logits.astype(jnp.float32)
        targets = jax.nn.one_hot(batch.labels, logits.shape[-1], dtype=jnp.float32)
        losses = optax.softmax_cross_entropy(logits, targets)
        return losses, (logits, new_variables.get("batch_stats", {}))

    return losses_fn


def start_trajectory(method: str, params: Any, num_examples: int, num_classes: int) -> Any:
    """What a method compares with, before the first step."""
    if method == "saf":
        return LogitMemory.create(num_examples, num_classes)
    if method == "mesa":
        return jax.tree.map(jnp.copy, params)
    return None


def train_step(
    state: TrainState,
    batch: Batch,
    previous: Batch,
    keys: tuple[jax.Array, jax.Array],
    losses_fn: LossesFn,
    *,
    epoch: ArrayLike,
    num_parts: int = 1,
    num_microbatches: int = 0,
) -> tuple[TrainState, jax.Array]:
    """One step of any method.

    Args:
      previous: the batch of the step before, for SAMPa.
      keys: of dropout in this step, and in the step before. Both gradients of a step share one.
      epoch: of the step, counted from 0.
      num_parts: parts of the batch that are computed one after another, see ``--accumulate``.
      num_microbatches: of ``budgeted_sam``; 0 if the whole batch is perturbed.

    Returns:
      The next state and the loss.
    """

    gives_microbatches = state.method == "budgeted_sam" and num_microbatches > 0
    parts = num_microbatches if gives_microbatches else num_parts

    def losses_of(params, some, key):
        losses, (logits, new_stats) = losses_fn(params, state.batch_stats, some, key)
        if state.method == "saf":
            losses += state.trajectory.loss(some.index, epoch, logits)
        elif state.method == "mesa":
            _, (past_logits, _) = losses_fn(state.trajectory, state.batch_stats, some, key)
            losses += mesa_loss(past_logits, logits, epoch)
        return losses, (logits, new_stats)

    def value_and_grad(params, some, key):
        if parts > 1:
            return in_parts(losses_of, parts)(params, some, key)

        def mean_loss(params):
            losses, others = losses_of(params, some, key)
            return losses.mean(), others

        return *jax.value_and_grad(mean_loss, has_aux=True)(params), None

    key, previous_key = keys
    (loss, (logits, batch_stats)), grads, of_each = value_and_grad(state.params, batch, key)
    new_state = state.apply_gradients(
        grads=grads,
        batch_stats=batch_stats,  # of the clean pass: the perturbed one's are dropped
        grad_fn=lambda params: value_and_grad(params, batch, key)[1],
        previous_grad_fn=lambda params: value_and_grad(params, previous, previous_key)[1],
        example_loss_fn=lambda params, some: losses_fn(params, state.batch_stats, some, key)[0],
        batch=batch,
        example_index=batch.index,
        **({"microbatch_grads": of_each} if gives_microbatches else {}),
    )
    if state.method == "saf":
        memory = state.trajectory.write(batch.index, epoch, logits)
        new_state = new_state.replace(trajectory=memory)
    elif state.method == "mesa":
        average = optax.incremental_update(new_state.params, state.trajectory, 1 - MESA_DECAY)
        new_state = new_state.replace(trajectory=average)
    return new_state, loss


def in_parts(losses_of: Callable, num_parts: int) -> Callable:
    """``value_and_grad`` of the mean loss, computed in parts of the batch one after another.

    It needs the activations of one part only. A part is every ``num_parts``-th example, so that
    each device has its share of it. BatchNorm normalizes each part separately, and its new
    statistics are their mean.

    Args:
      losses_of: ``(params, batch, key) -> losses, (logits, batch_stats)``.

    Returns:
      A function of the same arguments that returns the loss with logits and statistics, the
      gradient, and the gradient of each part.
    """

    def of_all(params, batch, key):
        value_and_grad = microbatches.value_and_grad(
            lambda params, part: losses_of(params, part, key), num_parts, has_aux=True
        )
        (loss, (logits, stats)), grads, of_each = value_and_grad(params, batch)
        logits = jnp.moveaxis(logits, 0, 1).reshape(-1, *logits.shape[2:])  # in the batch's order
        return (loss, (logits, jax.tree.map(lambda x: x.mean(0), stats))), grads, of_each

    return of_all
