"""Corrections: what is emitted on a step with a perturbed gradient and on one without it."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

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
      reads_grads: False if ``fresh`` leaves ``grads`` unread, which may be None; see ``Probe``.
    """

    init: Callable[..., Any]
    fresh: Callable[..., tuple[Any, Any]]
    stale: Callable[..., Any]
    reads_grads: bool = True


def replace() -> Correction:
    """Emits the perturbed gradient when there is one, else the gradient. Keeps nothing."""
    return Correction(
        init=lambda params: (),
        fresh=lambda state, grads, perturbed_grads: (perturbed_grads, state),
        stale=lambda state, grads, age: grads,
        reads_grads=False,
    )


def interpolate(strength: chex.Numeric) -> Correction:
    r"""Emits :math:`(1 - a) g + a\, g_A` when there is a perturbed gradient, else g. Keeps nothing.

    With ε = r g/‖g‖ this is the gradient-norm penalty of weight λ = a r: to first order in r the
    gradient of L + λ ‖∇L‖.

    Args:
      strength: a >= 0; 0 is the gradient, 1 is ``replace``.

    References:
      Zhao et al., Penalizing Gradient Norm (arXiv 2202.03599).
    """
    return reuse_psf(0, strength=strength)


class ReusePSFState(NamedTuple):
    """State of ``reuse_psf``: the PSF of the last sample, shaped like the parameters.

    And its norm, float32 scalar, where a bound reads it; () elsewhere.
    """

    psf: Any
    norm: Any


def reuse_psf(
    steps: int | None = 2,
    dtype: Any = None,
    *,
    strength: chex.Numeric = 1,
    bound: chex.Numeric | None = None,
    sample_bound: chex.Numeric | None = None,
) -> Correction:
    r"""ARSAM's reuse of the PSF, the difference :math:`\nabla L(w + \varepsilon) - \nabla L(w)`.

    A sampled step emits ``g + a PSF``, which is the perturbed gradient for a = 1, and keeps the
    PSF; the ``steps`` steps after it emit ``g + a PSF`` with the kept one (equation 15 of the
    paper), later ones ``g``.

    Args:
      steps: how many steps reuse a sample. 2 is the paper's ARSAM, 0 its ablation ARSAM-A, which
        keeps no buffer; None reuses until the next sample.
      dtype: of the kept PSF; None keeps the dtype of each parameter.
      strength: a >= 0, see ``interpolate``.
      bound: κ > 0: a reused PSF is scaled down to ‖a PSF‖ <= κ ‖g‖. Then ⟨g + a PSF, g⟩ >= (1 − κ)
        ‖g‖², so for κ < 1 a reuse step descends however old the PSF is. None does not scale.
      sample_bound: the same on a sampled step, for the PSF that it emits and keeps. A step is then
        at most a multiple of the gradient long, however far it looked.

    Returns:
      A correction that keeps one buffer shaped like the parameters (none if ``steps`` is 0).

    References:
      Deng and Pang, ARSAM (arXiv 2510.03763), equations 14 and 15, theorem 3.
    """
    if steps is not None:
        _check.check_integer("reuse_steps", steps, low=0)
        if not isinstance(steps, Tracer) and steps == 0:
            _check.check_static("reuse_steps", steps, "a Python number where it is 0")
    _check.check_floating_dtype("reuse_dtype", dtype, or_none=True)
    _check.check_number("strength", strength, low=0)
    for name, value in (("bound", bound), ("sample_bound", sample_bound)):
        if value is not None:
            _check.check_number(name, value, above=0)
    keeps_nothing = isinstance(steps, numbers.Integral) and steps == 0
    is_whole = isinstance(strength, numbers.Real) and strength == 1

    def mix(grads, psf):
        return _tree.add(grads, psf if is_whole else _tree.scale(strength, psf))

    def init(params):
        if keeps_nothing:
            return ()
        norm = () if bound is None else jnp.zeros([], jnp.float32)
        return ReusePSFState(_zeros_like(params, dtype), norm)

    def shrinking(limit, grads, norm):
        """What shortens a PSF of this norm to ‖a PSF‖ <= limit ‖g‖, at most 1."""
        most = jnp.asarray(limit, jnp.float32) * _tree.norm(grads).astype(jnp.float32)
        norm = norm if is_whole else jnp.asarray(strength, jnp.float32) * norm
        return jnp.minimum(1, _tree.safe_divide(most, norm))

    def fresh(state, grads, perturbed_grads):
        psf = _tree.subtract(perturbed_grads, grads)
        norm: Any = None  # where no bound reads it
        if bound is not None or sample_bound is not None:
            norm = _tree.norm(_tree.minus_psf(grads, perturbed_grads)).astype(jnp.float32)
        emitted = perturbed_grads if is_whole else mix(grads, psf)
        if sample_bound is not None:
            # What is not finite stays so, to be seen.
            factor = jnp.where(jnp.isfinite(norm), shrinking(sample_bound, grads, norm), 1)
            psf, norm = _tree.scale(factor, psf), factor * norm
            emitted = _tree.where(factor < 1, mix(grads, psf), emitted)
        if keeps_nothing:
            return emitted, state
        norm = () if bound is None else norm
        return emitted, ReusePSFState(_tree.cast_like(psf, state.psf), norm)

    def stale(state, grads, age):
        if keeps_nothing:
            return grads
        is_reused = age < NEVER if steps is None else age <= jnp.asarray(steps, jnp.int32)
        psf = _tree.widen(state.psf)
        if bound is not None:
            psf = _tree.scale(shrinking(bound, grads, state.norm), psf)
        return _tree.where(is_reused, mix(grads, psf), grads)

    return Correction(init, fresh, stale)


class ReuseOrthogonalState(NamedTuple):
    """State of ``reuse_orthogonal``: g_v of the last sampled step, shaped like the parameters."""

    orthogonal: Any


def reuse_orthogonal(alpha: Any = 0.7, dtype: Any = None) -> Correction:
    r"""LookSAM's reuse of the part of the perturbed gradient that is orthogonal to the gradient.

    A sampled step emits g_A and keeps :math:`g_v = g_A - (\langle g, g_A\rangle / \|g\|^2)\, g`;
    the steps until the next emit :math:`g + \alpha (\|g\| / \|g_v\|)\, g_v`. All norms and inner
    products are over the whole tree. A g_v that is no longer than rounding makes it, 16 eps ‖g_A‖,
    is kept as 0, so that the steps after it emit g.

    Args:
      alpha: α >= 0.
      dtype: of the kept g_v; None keeps the dtype of each parameter.

    Returns:
      A correction that keeps one buffer shaped like the parameters.

    References:
      Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization (arXiv 2203.02714).
    """
    _check.check_number("alpha", alpha, low=0)
    _check.check_floating_dtype("reuse_dtype", dtype, or_none=True)

    def init(params):
        return ReuseOrthogonalState(_zeros_like(params, dtype))

    def fresh(state, grads, perturbed_grads):
        orthogonal = _tree.reject(perturbed_grads, grads)
        whole = _tree.norm(perturbed_grads)
        is_rounding = _tree.norm(orthogonal) <= 16 * float(jnp.finfo(whole.dtype).eps) * whole
        orthogonal = _tree.scale(jnp.where(is_rounding, 0, 1), orthogonal)
        return perturbed_grads, ReuseOrthogonalState(_tree.cast_like(orthogonal, state.orthogonal))

    def stale(state, grads, age):
        del age
        norm = _tree.norm(grads)
        ratio = _tree.safe_divide(norm, _tree.norm(state.orthogonal).astype(norm.dtype))
        factor = jnp.asarray(alpha, norm.dtype) * ratio
        return _tree.add(grads, _tree.scale(factor, _tree.widen(state.orthogonal)))

    return Correction(init, fresh, stale)


def subtract_orthogonal(alpha: Any) -> Correction:
    r"""GSAM's step: descends the surrogate gap without leaving the descent of the perturbed loss.

    A sampled step emits :math:`g_A - \alpha\, g_\perp` with :math:`g_\perp = g - (\langle g,
    g_A\rangle / \|g_A\|^2)\, g_A`, the part of g orthogonal to g_A; other steps emit g. Keeps
    nothing.

    Args:
      alpha: α >= 0; 0 is ``replace``.

    References:
      Zhuang et al., Surrogate Gap Minimization (arXiv 2203.08065), algorithm 1.
    """
    _check.check_number("alpha", alpha, low=0)

    def fresh(state, grads, perturbed_grads):
        orthogonal = _tree.reject(grads, perturbed_grads)
        return _tree.add(perturbed_grads, _tree.scale(-alpha, orthogonal)), state

    return Correction(lambda params: (), fresh, lambda state, grads, age: grads)


def _zeros_like(params: Any, dtype: Any) -> Any:
    if dtype is not None and any(jnp.iscomplexobj(p) for p in jax.tree.leaves(params)):
        raise ValueError(f"reuse_dtype must be None for complex parameters, got {dtype!r}.")
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype), params)
