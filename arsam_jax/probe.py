"""Probes: how the second gradient of a sampled step is taken."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from arsam_jax import _tree, ascent


class Probe(NamedTuple):
    """Takes the perturbed gradient. A pair of pure functions.

    Attributes:
      init: ``params -> state``.
      update: ``(grads, state, params, *, rho, step, grad_fn, **extra_args) -> (perturbed_grads,
        state)``. Called on sampled steps only; ``grads`` are in at least float32.
    """

    init: Callable[..., Any]
    update: Callable[..., tuple[Any, Any]]


def perturb(ascent: optax.GradientTransformation = ascent.normalize()) -> Probe:  # noqa: B008
    r"""The gradient at the perturbed point, :math:`\nabla L(w + \rho\,\mathrm{ascent}(g))`.

    ``w + ε`` is computed in at least float32, so ``grad_fn`` receives float32 parameters where
    the parameters are bfloat16 or float16: rounded to those, a perturbation of the usual size
    would mostly vanish and lose its direction.

    Args:
      ascent: maps the gradient to the direction of the perturbation.

    Returns:
      A probe that costs one evaluation of ``grad_fn`` and keeps the state of ``ascent`` only.
    """
    ascent = optax.with_extra_args_support(ascent)

    def init_fn(params):
        return ascent.init(_tree.widen(params))

    def update_fn(grads, state, params, *, rho, grad_fn, **extra_args):
        params = _tree.widen(params)
        direction, state = ascent.update(
            grads, state, params, rho=rho, grad_fn=grad_fn, **extra_args
        )
        return grad_fn(_tree.add(params, _tree.scale(rho, direction))), state

    return Probe(init_fn, update_fn)
