"""Corrections: the gradient that a step returns, with and without a perturbed gradient."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from arsam_jax import _check, _tree
from arsam_jax._repr import describe, described

NEVER = np.iinfo(np.int32).max
"""The age of a sample if there has been none."""


class Kept(NamedTuple):
    """What a correction keeps between sampled steps.

    Attributes:
      tree: d, shaped like the parameters.
      norm: ‖d‖, a scalar of at least float32, if the correction reads it on later steps, otherwise
        ().
    """

    tree: Any
    norm: Any = ()


class Correction(NamedTuple):
    r"""Decides which gradient replaces g. A triple of pure functions.

    A correction that keeps a tree d returns :math:`a\,g + b\,d` on every step, and decides d and
    the scalars a and b. Only d and the scalars leave the ``lax.cond`` of the step, so that the sum
    is computed together with the base optimizer. A correction that keeps nothing returns a tree on
    sampled steps and g on all others.

    Attributes:
      init: ``params -> state``: a ``Kept``, or () if nothing is kept.
      fresh: called on a sampled step. ``(grads, perturbed_grads) -> (state, (a, b))``, or
        ``(updates, None)`` if nothing is kept. Both trees are shaped like the parameters, in at
        least float32.
      stale: ``(state, grads, age) -> (a, b)``, called on every other step, if something is kept.
        ``age`` (int32 scalar) is the number of steps since the last sample: 1 on the next step,
        ``NEVER`` before the first sample.
      reads_grads: False if ``fresh`` does not read ``grads``, which may then be None; see
      ``Probe``.
      name: of the correction, with its arguments, for ``repr``.
    """

    init: Callable[..., Any]
    fresh: Callable[..., tuple[Any, Any]]
    stale: Callable[..., Any] | None = None
    reads_grads: bool = True
    name: str = ""

    def __repr__(self) -> str:
        return describe(self)


def _keeping_nothing(
    updates_of: Callable[[Any, Any], Any], *, reads_grads: bool = True
) -> Correction:
    """Returns ``updates_of(grads, perturbed_grads)`` on sampled steps and g on all others."""
    return Correction(
        init=lambda params: (),
        fresh=lambda grads, perturbed_grads: (updates_of(grads, perturbed_grads), None),
        reads_grads=reads_grads,
    )


@described
def replace() -> Correction:
    """Returns the perturbed gradient on sampled steps, otherwise the gradient. Keeps nothing."""
    return _keeping_nothing(lambda grads, perturbed_grads: perturbed_grads, reads_grads=False)


@described
def interpolate(strength: chex.Numeric) -> Correction:
    r"""Returns :math:`(1 - a) g + a\, g_A` on sampled steps, otherwise g. Keeps nothing.

    With ε = r g/‖g‖ this is the gradient-norm penalty of weight λ = a r: to first order in r the
    gradient of L + λ ‖∇L‖.

    Args:
      strength: a >= 0; 0 is the gradient, 1 is ``replace``.

    References:
      Zhao et al., Penalizing Gradient Norm (arXiv 2202.03599).
    """
    return reuse_psf(0, strength=strength)


@described
def reuse_psf(
    steps: int | None = 2,
    dtype: Any = None,
    *,
    strength: chex.Numeric = 1,
    bound: chex.Numeric | None = None,
    sample_bound: chex.Numeric | None = None,
) -> Correction:
    r"""ARSAM's reuse of the PSF, the difference :math:`\nabla L(w + \varepsilon) - \nabla L(w)`.

    A sampled step keeps the PSF and returns ``g + a PSF``, which is the perturbed gradient for
    a = 1. The ``steps`` steps after it return ``g + a PSF`` with the kept PSF (equation 15 of the
    paper), later ones return ``g``.

    Args:
      steps: how many steps reuse a sample. 2 is the paper's ARSAM, 0 its ablation ARSAM-A, which
        keeps no buffer; None reuses until the next sample.
      dtype: of the kept PSF; None keeps the dtype of each parameter. Values beyond the range of a
        narrower dtype are clipped to it.
      strength: a >= 0, see ``interpolate``.
      bound: κ > 0: a reused PSF is scaled down to ‖a PSF‖ <= κ ‖g‖. Then ⟨g + a PSF, g⟩ >= (1 − κ)
        ‖g‖², so for κ < 1 a reuse step descends however old the PSF is. None does not scale.
      sample_bound: the same on a sampled step, for the PSF that it returns and keeps. The returned
        gradient is then at most a multiple of g long, whatever the radius is.

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

    def init(params):
        norm = () if bound is None else jnp.zeros([], _tree.scalar_dtype(params))
        return Kept(_zeros_like(params, dtype), norm)

    def shrinking(limit, grads, norm):
        """The factor, at most 1, that shortens a PSF of this norm to ‖a PSF‖ <= limit ‖g‖."""
        most = jnp.asarray(limit, norm.dtype) * _tree.norm(grads)
        length = jnp.asarray(strength, norm.dtype) * norm
        return jnp.minimum(1, _tree.safe_divide(most, length))

    def psf_of(grads, perturbed_grads):
        psf: Any = _tree.subtract(perturbed_grads, grads)
        norm: Any = ()
        if bound is not None or sample_bound is not None:
            norm = _tree.norm(_tree.minus_psf(grads, perturbed_grads))
        if sample_bound is not None:
            # A norm that is not finite must stay visible in the PSF.
            factor = jnp.where(jnp.isfinite(norm), shrinking(sample_bound, grads, norm), 1)
            psf, norm = _tree.scale(factor, psf), factor * norm
        return Kept(psf, () if bound is None else norm)

    def fresh(grads, perturbed_grads):
        return psf_of(grads, perturbed_grads), (1, strength)

    def stale(kept, grads, age):
        is_reused = age < NEVER if steps is None else age <= jnp.asarray(steps, jnp.int32)
        factor = jnp.asarray(strength, _tree.scalar_dtype(grads))
        if bound is not None:
            factor *= shrinking(bound, grads, kept.norm)
        return 1, jnp.where(is_reused, factor, 0)

    if not (isinstance(steps, numbers.Integral) and steps == 0):
        return Correction(init, fresh, stale)
    is_whole = isinstance(strength, numbers.Real) and strength == 1 and sample_bound is None

    def updates_of(grads, perturbed_grads):
        if is_whole:
            return perturbed_grads
        psf = psf_of(grads, perturbed_grads).tree
        return _tree.add(grads, _tree.scale(strength, psf))

    return _keeping_nothing(updates_of)


@described
def reuse_orthogonal(alpha: Any = 0.7, dtype: Any = None) -> Correction:
    r"""LookSAM's reuse of the part of the perturbed gradient that is orthogonal to the gradient.

    A sampled step keeps :math:`g_v = g_A - k\, g` with :math:`k = \langle g, g_A\rangle / \|g\|^2`
    and returns :math:`g_A = k\, g + g_v`. The steps until the next sample return :math:`g + \alpha
    (\|g\| / \|g_v\|)\, g_v`. All norms and inner products are over the whole tree. A g_v that is
    shorter than rounding errors can be, 16 eps ‖g_A‖, is kept as 0, so that the steps after it
    return g.

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
        return Kept(_zeros_like(params, dtype), jnp.zeros([], _tree.scalar_dtype(params)))

    def fresh(grads, perturbed_grads):
        k = _tree.safe_divide(_tree.dot(grads, perturbed_grads), _tree.dot(grads, grads))
        orthogonal = _tree.subtract(perturbed_grads, _tree.scale(k, grads))
        length, whole = _tree.norm(orthogonal), _tree.norm(perturbed_grads)
        is_rounding = length <= 16 * float(jnp.finfo(whole.dtype).eps) * whole
        orthogonal = _tree.scale(jnp.where(is_rounding, 0, 1), orthogonal)
        return Kept(orthogonal, jnp.where(is_rounding, 0, length)), (k, 1)

    def stale(kept, grads, age):
        del age
        ratio = _tree.safe_divide(_tree.norm(grads), kept.norm)
        return 1, jnp.asarray(alpha, ratio.dtype) * ratio

    return Correction(init, fresh, stale)


@described
def subtract_orthogonal(alpha: Any) -> Correction:
    r"""GSAM's step: descends the surrogate gap without leaving the descent of the perturbed loss.

    A sampled step returns :math:`g_A - \alpha\, g_\perp` with :math:`g_\perp = g - (\langle g,
    g_A\rangle / \|g_A\|^2)\, g_A`, the part of g orthogonal to g_A. Other steps return g. Keeps
    nothing.

    Args:
      alpha: α >= 0; 0 is ``replace``.

    References:
      Zhuang et al., Surrogate Gap Minimization (arXiv 2203.08065), algorithm 1.
    """
    _check.check_number("alpha", alpha, low=0)

    def updates_of(grads, perturbed_grads):
        orthogonal = _tree.reject(grads, perturbed_grads)
        return _tree.add(perturbed_grads, _tree.scale(-alpha, orthogonal))

    return _keeping_nothing(updates_of)


@described
def rescale() -> Correction:
    r"""Stabilized SAM: returns g_A with the norm of g, :math:`(\|g\| / \|g_A\|)\, g_A`.

    On steps without a perturbed gradient it returns g. Norms are over the whole tree, and where g_A
    is 0 it returns 0.

    Returns:
      A correction that keeps nothing and costs two norms.

    References:
      Tan et al., Stabilizing Sharpness-aware Minimization Through A Simple Renormalization Strategy
      (arXiv 2401.07250).
    """

    def updates_of(grads, perturbed_grads):
        ratio = _tree.safe_divide(_tree.norm(grads), _tree.norm(perturbed_grads))
        return _tree.scale(ratio, perturbed_grads)

    return _keeping_nothing(updates_of)


def _zeros_like(params: Any, dtype: Any) -> Any:
    if dtype is not None and any(jnp.iscomplexobj(p) for p in jax.tree.leaves(params)):
        raise ValueError(f"reuse_dtype must be None for complex parameters, got {dtype!r}.")
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype), params)
