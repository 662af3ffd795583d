"""Decoupled sharpness: the base optimizer follows g, and the sharpness term bypasses it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from arsam_jax import _check, _tree
from arsam_jax.state import get_state


class DecoupleState(NamedTuple):
    """State of ``decouple``.

    Attributes:
      transformation: state of the sharpness-aware transformation.
      base: state of the base optimizer.
    """

    transformation: Any
    base: Any


def decouple(
    transformation: optax.GradientTransformation,
    base: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    r"""Lets what a sharpness-aware transformation adds to the gradient bypass the base optimizer.

    With s the gradient that the transformation returns,

    .. math::
        \Delta w = \mathrm{base}(g) - \eta\,(s - g),

    so neither the momentum of the base optimizer nor its second moments see the sharpness term, as
    decoupled weight decay does with the weights. The result is a whole optimizer and not a part of
    a chain::

        base = optax.sgd(schedule, momentum=0.9)
        tx = decouple(wsam(0.05), base, schedule)
        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)

    It costs and keeps what the transformation does, and always reads the clean gradient. A
    non-finite s goes through the base optimizer instead, so that ``optax.apply_if_finite`` around
    the base optimizer sees it.

    Args:
      transformation: a sharpness-aware transformation, such as ``wsam``.
      base: the base optimizer, with everything that follows the transformation in a chain.
      learning_rate: η >= 0, or a schedule over the steps of the transformation: that of ``base``.

    References:
      Yue et al., Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
      Term (arXiv 2305.15817), algorithm 1.
    """
    for name, part in (("transformation", transformation), ("base", base)):
        if not isinstance(part, optax.GradientTransformation):
            raise TypeError(f"{name} must be an optax.GradientTransformation, got {part!r}.")
    _check.check_scalar_or_schedule("learning_rate", learning_rate, low=0)
    transformation = optax.with_extra_args_support(transformation)
    base = optax.with_extra_args_support(base)

    def init_fn(params):
        state = DecoupleState(transformation.init(params), base.init(params))
        try:
            get_state(state.transformation)
        except ValueError as error:
            raise ValueError(
                "transformation must hold one sharpness-aware transformation, such as"
                f" wsam(0.05), got {transformation!r}."
            ) from error
        return state

    def update_fn(updates, state, params=None, **extra_args):
        step = get_state(state.transformation).step
        rate: Any = learning_rate(step) if callable(learning_rate) else learning_rate
        grads = _tree.widen(updates)
        returned, inner_state = transformation.update(
            grads, state.transformation, params, **extra_args
        )
        pairs = zip(jax.tree.leaves(returned), jax.tree.leaves(grads), strict=True)
        if all(x is y for x, y in pairs):  # ρ is 0: the base optimizer, bit for bit
            updates, base_state = base.update(updates, state.base, params, **extra_args)
            return updates, DecoupleState(inner_state, base_state)
        sharpness = _tree.subtract(returned, grads)
        is_finite = jnp.isfinite(_tree.norm(sharpness))
        to_base = _tree.cast_like(_tree.where(is_finite, grads, returned), updates)
        updates, base_state = base.update(to_base, state.base, params, **extra_args)
        moved = _tree.add(updates, _tree.scale(-rate, sharpness))
        return _tree.where(is_finite, moved, updates), DecoupleState(inner_state, base_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
