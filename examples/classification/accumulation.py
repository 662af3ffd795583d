"""A batch in parts, one after another, to save memory: ``--accumulate``."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from arsam_jax import microbatches


def join(parts: jax.Array) -> jax.Array:
    """What the examples of each part have, (parts, examples, ...), in the order of the batch."""
    return jnp.moveaxis(parts, 0, 1).reshape(-1, *parts.shape[2:])


def in_parts(value_and_grad: Callable, num_parts: int) -> Callable:
    """``value_and_grad`` of a batch, part after part; only one has its activations in memory.

    Values and gradients are averaged, so this is the gradient of the whole batch, and a
    sharpness-aware method that is given it perturbs by that. A part is every ``num_parts``-th
    example, so that each device has its share of it. BatchNorm normalises each part by itself, and
    its statistics move once for each.

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
        # XLA:CPU is slow at convolutions inside loops.
        unroll = jax.default_backend() == "cpu"
        (batch_stats, loss, grads), logits = jax.lax.scan(one_part, start, parts, unroll=unroll)
        grads = jax.tree.map(lambda x: x / num_parts, grads)
        return (loss / num_parts, (join(logits), batch_stats)), grads

    return of_all_parts
