"""Corrections: what is emitted on a step with a perturbed gradient and on one without it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arsam_jax import _check, _tree

NEVER = np.iinfo(np.int32).max
"""The age of a sample that was never taken."""


class Correction(NamedTuple):
    """Decides what replaces the gradient. Pure functions.

    Attributes:
      init: ``params -> state``.
      fresh: ``(state, grads, perturbed_grads) -> (updates, state)``, on a sampled step.
      stale: ``(state, grads, age) -> updates``, on every other step; ``age`` (int32 scalar) is the
        number of steps since the last sample, 1 right after it, ``NEVER`` before the first one.
    """

    init: Callable[..., Any]
    fresh: Callable[..., tuple[Any, Any]]
    stale: Callable[..., Any]


def replace() -> Correction:
    """Emits the perturbed gradient when there is one, else the gradient. Keeps nothing."""

    def fresh(state, grads, perturbed_grads):
        del grads
        return perturbed_grads, state

    def stale(state, grads, age):
        del state, age
        return grads

    return Correction(lambda params: (), fresh, stale)


class ReusePSFState(NamedTuple):
    """State of ``reuse_psf``: the PSF of the last sampled step, shaped like the parameters."""

    psf: Any


def reuse_psf(steps: int | None = 2, dtype: Any = None) -> Correction:
    r"""ARSAM's reuse of the PSF, the difference :math:`\nabla L(w + \varepsilon) - \nabla L(w)`.

    A sampled step emits the perturbed gradient and keeps its PSF; the ``steps`` steps after it
    emit ``g + PSF`` (equation 15 of the paper), later ones ``g``.

    Args:
      steps: how many steps reuse a sample. 2 is the paper's ARSAM, 0 its ablation ARSAM-A, which
        keeps no buffer; None reuses until the next sample.
      dtype: of the kept PSF; None keeps the dtype of each parameter.

    Returns:
      A correction that keeps one buffer shaped like the parameters (none if ``steps`` is 0).

    References:
      Deng and Pang, ARSAM (arXiv 2510.03763), equations 14 and 15, theorem 3.
    """
    if steps is not None:
        _check.check_integer("reuse_steps", steps, low=0)
    if dtype is not None and not jnp.issubdtype(jnp.dtype(dtype), jnp.inexact):
        raise ValueError(f"reuse_dtype must be a floating point dtype or None, got {dtype!r}.")
    if isinstance(steps, int) and steps == 0:
        return replace()

    def init(params):
        return ReusePSFState(jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype), params))

    def fresh(state, grads, perturbed_grads):
        psf = _tree.cast_like(_tree.subtract(perturbed_grads, grads), state.psf)
        return perturbed_grads, ReusePSFState(psf)

    def stale(state, grads, age):
        is_reused = age < NEVER if steps is None else age <= jnp.asarray(steps, jnp.int32)
        return _tree.where(is_reused, _tree.add(grads, state.psf), grads)

    return Correction(init, fresh, stale)
