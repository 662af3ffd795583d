"""Helper for Equinox: the loss and gradients of a model, and the matching ``grad_fn``.

Needs the extra ``arsam-jax[equinox]``.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp


def eqx_value_and_grad(
    loss_fn: Callable[..., Any],
    model: Any,
    *args: Any,
    wrt: Any = eqx.is_inexact_array,
    has_aux: bool = False,
) -> tuple[Any, Any, Any, Callable[[Any], Any]]:
    """Computes the loss and gradients of an Equinox model, and what ``tx.update`` needs with them.

    ``params`` are the trained leaves of the model, with None in place of all others. Call
    ``tx.init`` with ``eqx.filter(model, eqx.is_inexact_array)``, or with the same filter as
    ``wrt``. The state of layers such as BatchNorm is an argument of ``loss_fn`` and part of its
    auxiliary data. Only the clean pass updates it, because ``grad_fn`` discards auxiliary data.

    Args:
      loss_fn: ``loss_fn(model, *args) -> loss``, a mean over examples, or ``(loss, aux)`` with
        ``has_aux``.
      model: any PyTree, usually an ``equinox.Module``.
      *args: further arguments of ``loss_fn``: the mini-batch, layer state, dropout keys. Both
        passes use the same ones.
      wrt: which leaves are trained: a function of a leaf, or a PyTree of bools that is a prefix of
        the model, as for ``equinox.partition``. All others are frozen.
      has_aux: whether ``loss_fn`` returns auxiliary data.

    Returns:
      ``(loss, grads, params, grad_fn)``, or ``((loss, aux), grads, params, grad_fn)`` with
      ``has_aux``. Gradients of complex parameters are conjugated, as optax expects them.

    Example::

        @eqx.filter_jit
        def train_step(model, opt_state, batch, key):
            loss, grads, params, grad_fn = eqx_value_and_grad(loss_fn, model, batch, key)
            updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
            return eqx.apply_updates(model, updates), opt_state, loss
    """
    params, static = eqx.partition(model, wrt)

    def evaluate(params):
        def loss_at(params):
            return loss_fn(eqx.combine(params, static), *args)

        value, grads = eqx.filter_value_and_grad(loss_at, has_aux=has_aux)(params)
        return value, jax.tree.map(jnp.conj, grads)

    value, grads = evaluate(params)
    return value, grads, params, lambda params: evaluate(params)[1]
