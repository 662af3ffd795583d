"""The checked ``example_loss_fn`` of parts that look at single examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from arsam_jax import _check, _devices

_EXAMPLE_CALL = """
    def example_loss_fn(params, batch):  # one loss for each example
        return optax.softmax_cross_entropy_with_integer_labels(...)
    tx.update(grads, opt_state, params, grad_fn=grad_fn,
              example_loss_fn=example_loss_fn, batch=batch)  # and axis_name in pmap, shard_map"""


def example_loss(
    example_loss_fn: Any,
    batch: Any,
    axis_name: Any,
    name: str = "batch",
    *,
    has_aux: bool = False,
) -> tuple[Callable[..., Any], Any]:
    """The checked ``example_loss_fn`` and the batch size, for parts that see single examples.

    ``name`` is that of the extra argument that ``batch`` is. With ``has_aux`` the function gives
    something else besides the losses, which is passed on.

    Raises:
      TypeError: if ``example_loss_fn`` is not a function.
      ValueError: if either extra argument is missing, the leaves of ``batch`` differ in their
        first axis or are empty, or (when called) there is not one loss for each example, or the
        losses vary over a mapped axis that ``axis_name`` does not name.
    """
    for missing, value in (("example_loss_fn", example_loss_fn), (name, batch)):
        if value is None:
            raise _check.MissingArgumentError(
                missing,
                f"This method evaluates single examples: its update needs {missing}."
                f"\n{_EXAMPLE_CALL}",
            )
    if not callable(example_loss_fn):
        raise TypeError(
            f"example_loss_fn must be a function of params and batch, got {example_loss_fn!r}."
        )
    size = batch_size(batch, name)
    if size == 0:
        raise ValueError(f"{name} must hold at least one example, got 0.")

    def loss_fn(params, batch):
        result: Any = example_loss_fn(params, batch)
        losses = result[0] if has_aux else result
        expected = jnp.shape(jax.tree.leaves(batch)[0])[:1]
        if jnp.shape(losses) != expected:
            raise ValueError(
                "example_loss_fn(params, batch) must return one loss for each example, of shape"
                f" {expected}, got {jnp.shape(losses)}."
            )
        missing = _devices.varying_axes(losses) - {*_devices.axes(axis_name)}
        if missing:
            raise ValueError(
                f"The examples differ between devices, over the mapped axis"
                f" {', '.join(map(repr, sorted(missing)))}, and axis_name is {axis_name!r}: this"
                " method averages the gradients that it takes itself over axis_name alone. Give"
                " tx.update(..., axis_name=...) every axis that the batch is spread over."
            )
        return result

    return loss_fn, size


def batch_size(batch: Any, name: str = "batch") -> int:
    """The first axis of every leaf; a ValueError if they differ in it."""
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(batch)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"Every leaf of {name} must have the same first axis, got the sizes {sorted(sizes)}."
        )
    return next(iter(sizes))[0]
