r"""Functional SAM: the Jacobian at the perturbed point, the derivative of the loss at the clean
one.

For a loss :math:`L(w) = \ell(z(w))` of the outputs z of a network (the logits), SAM's gradient at w
+ ε is :math:`J(w + \varepsilon)^\top \nabla_z \ell(z(w + \varepsilon))` with the Jacobian J of z.
In language models it mostly changes the second factor, that is the logits, which often makes the
model worse. Functional SAM keeps that factor at w:

.. math::
    g_A = J(w + \varepsilon)^\top\, \nabla_z \ell(z(w)).

This is a different ``grad_fn`` and not a different transformation. It therefore works with every
method that takes its second gradient from ``grad_fn``: ``sam``, ``arsam``, ``budgeted_sam``,
``asam``, ...

References:
  Singh et al., Avoiding spurious sharpness minimization broadens applicability of SAM (arXiv
  2502.02407).
"""

from collections.abc import Callable
from typing import Any

import jax

from arsam_jax import _check, _devices, microbatches
from arsam_jax._convolutions import fast_convolutions


def value_and_grad(
    outputs_fn: Callable[..., Any],
    loss_fn: Callable[..., Any],
    *,
    has_aux: bool = False,
    axis_name: Any = None,
    num_microbatches: int = 1,
) -> Callable[[Any, Any], tuple[Any, Any, Callable[[Any], Any]]]:
    """The loss and its gradient, and the ``grad_fn`` of functional SAM.

    The returned ``grad_fn`` closes over the derivative of the loss by the outputs, so a sampled
    step costs no more than SAM's: one more forward and backward pass. That derivative has the size
    of the outputs (batch × length × vocabulary for a language model) and stays in memory until the
    step is done. At ``params`` itself ``grad_fn`` returns the gradient.

    Args:
      outputs_fn: ``(params, batch) -> outputs``, any pytree of real arrays; with ``has_aux``,
        ``(outputs, aux)``. Dropout keys belong into the batch or are closed over.
      loss_fn: ``(outputs, batch) -> loss``, a mean over examples.
      has_aux: whether ``outputs_fn`` also returns auxiliary data, such as updated statistics.
      axis_name: of ``pmap``, ``vmap`` or ``shard_map``, over which loss and gradients are averaged.
        Under ``jit`` with sharded arrays it is not needed.
      num_microbatches: K, a Python integer that divides the batch size. With K > 1 both passes
        accumulate over the micro-batches of ``microbatches.split``, which must all be equally
        weighted by ``loss_fn``.

    Returns:
      ``(params, batch) -> (loss, grads, grad_fn)``, or ``((loss, aux), grads, grad_fn)`` with
      ``has_aux``. With K > 1 aux has a new first axis over the micro-batches. Aux is not averaged
      over devices.

    Raises:
      TypeError, ValueError: for a bad ``num_microbatches``.

    Example::

        value_and_grad = functional.value_and_grad(outputs_fn, loss_fn)

        def train_step(params, opt_state, batch):
            loss, grads, grad_fn = value_and_grad(params, batch)
            updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
            return optax.apply_updates(params, updates), opt_state, loss
    """
    _check.check_static("num_microbatches", num_microbatches)
    _check.check_integer("num_microbatches", num_microbatches, low=1)

    def clean(params, batch):
        """The loss, aux, the gradient, and the derivative by the outputs."""
        evaluated: Any = jax.vjp(lambda p: outputs_fn(p, batch), params, has_aux=has_aux)
        outputs, pull_back = evaluated[:2]
        aux = evaluated[2] if has_aux else None
        loss, cotangent = jax.value_and_grad(lambda z: loss_fn(z, batch))(outputs)
        (grads,) = pull_back(cotangent)
        return loss, aux, grads, cotangent

    def perturbed(params, batch, cotangent):
        evaluated: Any = jax.vjp(lambda p: outputs_fn(p, batch), params, has_aux=has_aux)
        (grads,) = evaluated[1](cotangent)
        return grads

    def mean(tree):
        return jax.tree.map(lambda x: x.mean(0), tree)

    def evaluate(params, batch):
        local = _devices.local_to(axis_name, params)
        parts = None
        if num_microbatches == 1:
            loss, aux, grads, cotangent = clean(local, batch)
        else:
            parts = microbatches.split(batch, num_microbatches)
            take = fast_convolutions(lambda part: clean(local, part))
            losses, aux, grads, cotangent = jax.lax.map(take, parts)
            loss, grads = mean((losses, grads))
        loss, grads = _devices.mean_over(axis_name, (loss, grads))

        def grad_fn(params):
            local = _devices.local_to(axis_name, params)
            if num_microbatches == 1:
                grads = perturbed(local, batch, cotangent)
            else:
                take = fast_convolutions(lambda part: perturbed(local, *part))
                grads = mean(jax.lax.map(take, (parts, cotangent)))
            return _devices.mean_over(axis_name, grads)

        return ((loss, aux) if has_aux else loss), grads, grad_fn

    return evaluate
