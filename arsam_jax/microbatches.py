"""Gradients of micro-batches, which a train step can pass on to m-SAM.

A sampled step of ``probe.microbatched`` then costs one more gradient, like SAM's, instead of two.
"""

from collections.abc import Callable
from typing import Any

import jax

from arsam_jax import _check, _devices
from arsam_jax._convolutions import fast_convolutions
from arsam_jax._examples import batch_size, example_loss


def split(batch: Any, num_microbatches: int) -> Any:
    """Splits a batch into K micro-batches: each leaf becomes (K, B / K, ...).

    The k-th micro-batch has the examples k, k + K, k + 2K, ..., so that each of them is spread over
    the devices of a sharded batch.

    Raises:
      ValueError: if K does not divide the batch size, or the leaves differ in it.
    """
    _check.check_static("num_microbatches", num_microbatches)
    _check.check_integer("num_microbatches", num_microbatches, low=1)
    size = batch_size(batch)
    if size % num_microbatches:
        raise ValueError(
            f"num_microbatches must divide the batch size {size}, got {num_microbatches}."
        )
    return jax.tree.map(
        lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1), batch
    )


def value_and_grad(
    example_loss_fn: Callable[..., Any],
    num_microbatches: int,
    *,
    axis_name: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""``jax.value_and_grad`` of the mean loss, and the gradient of each of K micro-batches.

    .. math::
        g_k = \nabla L_k(w), \qquad g = \frac1K \sum_k g_k.

    The gradients are taken one after another, at the cost of one gradient of the batch and with the
    activations of one micro-batch in memory. The g_k take K buffers shaped like the parameters.
    BatchNorm sees one micro-batch at a time. Gradients are those of JAX: for complex parameters,
    conjugate both grads and microbatch_grads.

    On several devices each device splits its own part of the batch. K = 1 with ``axis_name`` makes
    every device one micro-batch; m-SAM then costs no gradient and no communication beyond SAM's.

    Args:
      example_loss_fn: ``(params, batch) -> losses`` of shape (batch,); with ``has_aux``,
        ``(losses, aux)``. The same function as the ``example_loss_fn`` of the update, except for
        aux.
      num_microbatches: K, a Python integer that divides the batch size.
      axis_name: of ``pmap``, ``vmap`` or ``shard_map``, over which loss and grads are averaged.
      has_aux: whether it also returns auxiliary data, such as updated statistics.

    Returns:
      ``(params, batch) -> (loss, grads, microbatch_grads)``. The last has a first axis of size K
      and is the extra argument of the update. With ``has_aux`` it is ``((loss, aux), grads,
      microbatch_grads)``, where aux has a new first axis over the device's micro-batches and is not
      averaged over devices.

    Raises:
      ValueError: if K does not divide the batch size, or the losses do not have shape (batch,).
    """

    def with_microbatches(params, batch):
        losses_of, _ = example_loss(example_loss_fn, batch, axis_name, has_aux=has_aux)
        local = _devices.local_to(axis_name, params)

        def loss_fn(params, part):
            result = losses_of(params, part)
            losses, aux = result if has_aux else (result, None)
            return losses.mean(), aux

        @fast_convolutions  # Convolutions inside a scan are slow on CPU.
        def take(part):
            return jax.value_and_grad(loss_fn, has_aux=True)(local, part)

        (losses, aux), grads = jax.lax.map(take, split(batch, num_microbatches))
        mean = jax.tree.map(lambda x: x.mean(0), (losses, grads))
        loss, whole = _devices.mean_over(axis_name, mean)
        return ((loss, aux) if has_aux else loss), whole, grads

    return with_microbatches
