"""The train step of every method: BatchNorm, dropout and a sharpness-aware link; to be copied.

It stands alone. What SAF, MESA and SAMPa, a batch in parts and averaged weights add is in modules
of their own, which ``trainer.py`` puts together with it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import arsam_jax.flax


class Batch(NamedTuple):
    """Images (n, height, width, channels) as the model takes them, float32; labels (n,), int32.

    ``index`` (n,), int32, says which examples of the training set they are.
    """

    images: Any
    labels: Any
    index: Any


class TrainState(arsam_jax.flax.TrainState):
    """Also holds the BatchNorm statistics."""

    batch_stats: Any


LossesFn = Callable[..., tuple[jax.Array, tuple[jax.Array, Any]]]
"""``losses_fn(params, batch_stats, batch, key) -> losses (n,), (logits, new batch_stats)``."""


def make_losses_fn(apply_fn: Callable, *, label_smoothing: float = 0.0) -> LossesFn:
    """The cross-entropy of each example, in float32, as BatchNorm and dropout have it in training.

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
        if label_smoothing:
            targets = jax.nn.one_hot(batch.labels, logits.shape[-1], dtype=jnp.float32)
            targets = optax.smooth_labels(targets, label_smoothing)
            losses = optax.softmax_cross_entropy(logits, targets)
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses, (logits, new_variables.get("batch_stats", {}))

    return losses_fn


def mean_of(losses_fn: LossesFn) -> Callable:
    """``loss_fn(params, batch_stats, batch, key) -> loss, (logits, new batch_stats)``."""

    def loss_fn(params, batch_stats, batch, key):
        losses, others = losses_fn(params, batch_stats, batch, key)
        return losses.mean(), others

    return loss_fn


def train_step(
    state: Any,
    batch: Batch,
    key: jax.Array,
    losses_fn: LossesFn,
    value_and_grad: Callable | None = None,
    **extra_args: Any,
) -> tuple[Any, jax.Array, jax.Array, Any]:
    """One step of any method.

    Args:
      state: a ``TrainState``.
      key: of dropout; both gradients of the step have the same.
      value_and_grad: of the loss, with the arguments of ``losses_fn``, where that is not the mean
        of the losses or is computed otherwise. A third result is the gradients of micro-batches.
      extra_args: further ones for the optimizer.

    Returns:
      The next state; the loss, the logits (n, classes) and the gradient at the old parameters.
    """
    if value_and_grad is None:
        value_and_grad = jax.value_and_grad(mean_of(losses_fn), has_aux=True)

    def value_and_grad_at(params):
        return value_and_grad(params, state.batch_stats, batch, key)

    (loss, (logits, batch_stats)), grads, *of_each = value_and_grad_at(state.params)
    if of_each:
        (extra_args["microbatch_grads"],) = of_each
    new_state = state.apply_gradients(
        grads=grads,
        batch_stats=batch_stats,  # of the clean pass: the perturbed one's are dropped
        # What a sharpness-aware method may ask for; plain SGD ignores it.
        grad_fn=lambda params: value_and_grad_at(params)[1],
        example_loss_fn=lambda params, some: losses_fn(params, state.batch_stats, some, key)[0],
        batch=batch,
        example_index=batch.index,
        **extra_args,
    )
    return new_state, loss, logits, grads
