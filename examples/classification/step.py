"""The train step of an image classifier with any method.

It handles BatchNorm, dropout, label smoothing, batches in parts, the micro-batches of
``budgeted_sam``, and the terms of SAF and MESA.
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


def make_losses_fn(apply_fn: Callable, label_smoothing: float = 0.0) -> LossesFn:
    """The cross-entropy of each example in float32, in training mode.

    Args:
      apply_fn: of a Flax Linen model that takes ``is_training``.
      label_smoothing: probability that a target spreads over all classes.
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
        targets = optax.smooth_labels(targets, label_smoothing)
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
      num_parts: see ``in_parts``.
      num_microbatches: of ``budgeted_sam``; 0 if the whole batch is perturbed.

    Returns:
      The next state and the loss.
    """

    def loss_fn(params, batch_stats, batch, key):
        losses, (logits, new_stats) = losses_fn(params, batch_stats, batch, key)
        loss = losses.mean()
        if state.method == "saf":
            loss += state.trajectory.loss(batch.index, epoch, logits)
        elif state.method == "mesa":
            _, (past_logits, _) = losses_fn(state.trajectory, batch_stats, batch, key)
            loss += mesa_loss(past_logits, logits, epoch)
        return loss, (logits, new_stats)

    gives_microbatches = state.method == "budgeted_sam" and num_microbatches > 0
    if gives_microbatches:
        value_and_grad = in_microbatches(losses_fn, num_microbatches)
    else:
        value_and_grad = in_parts(jax.value_and_grad(loss_fn, has_aux=True), num_parts)

    def grads_at(params, batch, key):
        return value_and_grad(params, state.batch_stats, batch, key)[1]

    key, previous_key = keys
    (loss, (logits, batch_stats)), grads, *of_each = value_and_grad(
        state.params, state.batch_stats, batch, key
    )
    new_state = state.apply_gradients(
        grads=grads,
        batch_stats=batch_stats,  # of the clean pass: the perturbed one's are dropped
        grad_fn=lambda params: grads_at(params, batch, key),
        previous_grad_fn=lambda params: grads_at(params, previous, previous_key),
        example_loss_fn=lambda params, some: losses_fn(params, state.batch_stats, some, key)[0],
        batch=batch,
        example_index=batch.index,
        **({"microbatch_grads": of_each[0]} if of_each else {}),
    )
    if state.method == "saf":
        memory = state.trajectory.write(batch.index, epoch, logits)
        new_state = new_state.replace(trajectory=memory)
    elif state.method == "mesa":
        average = optax.incremental_update(new_state.params, state.trajectory, 1 - MESA_DECAY)
        new_state = new_state.replace(trajectory=average)
    return new_state, loss


def in_parts(value_and_grad: Callable, num_parts: int) -> Callable:
    """``value_and_grad`` of a batch in parts, one after another, to save memory.

    Losses and gradients are averaged, so this is the gradient of the whole batch, and a
    sharpness-aware method perturbs by that. A part is every ``num_parts``-th example, so that each
    device has its share of it. BatchNorm normalizes each part separately and updates its statistics
    once for each.

    Args:
      value_and_grad: ``(params, batch_stats, batch, key) -> (loss, (logits, batch_stats)), grads``.
    """
    if num_parts == 1:
        return value_and_grad

    def of_all_parts(params, batch_stats, batch, key):
        def one_part(carry, part):
            batch_stats, loss, grads = carry
            i, some = part
            (more_loss, (logits, batch_stats)), more_grads = value_and_grad(
                params, batch_stats, some, jax.random.fold_in(key, i)
            )
            carry = batch_stats, loss + more_loss, jax.tree.map(jnp.add, grads, more_grads)
            return carry, logits

        start = (batch_stats, jnp.zeros([]), jax.tree.map(jnp.zeros_like, params))
        parts = (jnp.arange(num_parts), microbatches.split(batch, num_parts))
        unroll = jax.default_backend() == "cpu"  # where convolutions are slow inside loops
        (batch_stats, loss, grads), logits = jax.lax.scan(one_part, start, parts, unroll=unroll)
        grads = jax.tree.map(lambda x: x / num_parts, grads)
        return (loss / num_parts, (_join(logits), batch_stats)), grads

    return of_all_parts


def in_microbatches(losses_fn: LossesFn, num_microbatches: int) -> Callable:
    """``value_and_grad`` of the mean loss, with the gradient of each micro-batch as third result.

    BatchNorm normalizes each micro-batch separately, and its new statistics are their mean.
    """

    def of_all(params, batch_stats, batch, key):
        value_and_grad = microbatches.value_and_grad(
            lambda params, part: losses_fn(params, batch_stats, part, key),
            num_microbatches,
            has_aux=True,
        )
        (loss, (logits, stats)), grads, of_each = value_and_grad(params, batch)
        stats = jax.tree.map(lambda x: x.mean(0), stats)
        return (loss, (_join(logits), stats)), grads, of_each

    return of_all


def _join(parts: jax.Array) -> jax.Array:
    """Values of parts, (parts, examples, ...), in the order of the batch."""
    return jnp.moveaxis(parts, 0, 1).reshape(-1, *parts.shape[2:])
