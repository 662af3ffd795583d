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
``asam``, ... With ``preconditioned_sam`` it is the preconditioned functional SAM of the paper. For
a loss that is linear in the outputs, functional SAM is SAM.

References:
  Singh et al., Avoiding spurious sharpness minimization broadens applicability of SAM (arXiv
  2502.02407).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from arsam_jax import _check, _devices, _tree, microbatches
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

    The returned ``grad_fn`` closes over the derivative of the loss by the outputs. A sampled step
    therefore costs 2 gradients, as SAM's does: one more forward and backward pass. Inside ``jit``
    it costs less than that by the last forward product, because the second pass does not need the
    outputs. With a large vocabulary this product is a large part. A step that is not sampled costs
    1. The derivative has the size of the outputs (batch × length × vocabulary for a language model)
    and stays in memory until the step is done. At ``params`` itself ``grad_fn`` returns the
    gradient, which ``check_wiring`` compares.

    Methods that take their second gradient from ``example_loss_fn`` (``esam``, ``m_sam``,
    ``k_sam``, ``ausam``) do not use ``grad_fn``, so they stay the ordinary methods.

    Args:
      outputs_fn: ``(params, batch) -> outputs``, any pytree of floating point arrays; with
        ``has_aux``, ``(outputs, aux)``. It must not draw a dropout key anew on each call: put the
        key into the batch or close over it.
      loss_fn: ``(outputs, batch) -> loss``, a mean over examples. Labels are part of the batch. A
        term that depends on the parameters in another way than through the outputs, such as
        weight decay, belongs into the base optimizer.
      has_aux: whether ``outputs_fn`` also returns auxiliary data, such as updated statistics. Those
        of the first pass are returned.
      axis_name: of ``pmap``, ``vmap`` or ``shard_map``, over which loss and gradients are averaged.
        Under ``jit`` with sharded arrays it is not needed.
      num_microbatches: K, a Python integer that divides the batch size. With K > 1 both passes
        accumulate over the micro-batches of ``microbatches.split``, with the activations of one of
        them in memory. ``loss_fn`` must weight all micro-batches equally, and every leaf of the
        batch must have the batch as its first axis.

    Returns:
      ``(params, batch) -> (loss, grads, grad_fn)``, or ``((loss, aux), grads, grad_fn)`` with
      ``has_aux``. With K > 1 aux has a new first axis over the micro-batches. Aux is not averaged
      over devices. Gradients have the dtypes of the parameters, and ``grad_fn`` returns the dtypes
      of its argument. For complex parameters they follow jax.grad: conjugate both gradients.

    Raises:
      TypeError: if ``outputs_fn`` or ``loss_fn`` is no function, or ``num_microbatches`` an array.
      ValueError: if ``loss_fn`` does not return a scalar, or ``num_microbatches`` is no positive
        integer that divides the batch size.

    Example::

        value_and_grad = functional.value_and_grad(outputs_fn, loss_fn)

        def train_step(params, opt_state, batch):
            loss, grads, grad_fn = value_and_grad(params, batch)
            updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
            return optax.apply_updates(params, updates), opt_state, loss
    """
    for name, function in (("outputs_fn", outputs_fn), ("loss_fn", loss_fn)):
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r}.")
    _check.check_static("num_microbatches", num_microbatches)
    _check.check_integer("num_microbatches", num_microbatches, low=1)

    def loss_of(outputs, batch):
        loss = loss_fn(outputs, batch)
        if jax.tree.structure(loss) != jax.tree.structure(0) or jnp.shape(loss) != ():
            raise ValueError(
                "loss_fn(outputs, batch) must return the loss alone, a scalar, got"
                f" {jax.tree.structure(loss)} of shapes"
                f" {[jnp.shape(x) for x in jax.tree.leaves(loss)]}. Auxiliary data come from"
                " outputs_fn (has_aux=True)."
            )
        return loss

    def pulled_back(params, batch):
        """The outputs, the function from their derivative to the gradient, and aux."""
        evaluated: Any = jax.vjp(lambda p: outputs_fn(p, batch), params, has_aux=has_aux)
        return evaluated if has_aux else (*evaluated, None)

    def clean(params, batch):
        """The loss, aux, the gradient, and the derivative by the outputs."""
        outputs, pull_back, aux = pulled_back(params, batch)
        loss, cotangent = jax.value_and_grad(loss_of)(outputs, batch)
        (grads,) = pull_back(cotangent)
        return loss, aux, grads, cotangent

    def perturbed(params, batch, cotangent):
        outputs, pull_back, _ = pulled_back(params, batch)
        # The perturbed parameters, and with them the outputs, can be wider than the clean ones.
        (grads,) = pull_back(_tree.cast_like(cotangent, outputs))
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
