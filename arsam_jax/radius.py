"""Radius policies: a radius ρ that is neither a number nor a schedule.

Every method accepts a policy as its ``rho``. A policy sees the parameters once, in ``init``.
Afterwards it sees scalars only, which are equal on all devices.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from arsam_jax import _check, _tree
from arsam_jax._repr import describe, described


class RadiusPolicy(NamedTuple):
    """Decides the radius of each step. Pure functions; all arguments but ``params`` are scalars.

    Attributes:
      init: ``params -> state``.
      value: ``(state, step) -> ρ``, called before the step. ``step`` (int32 scalar) counts from 0,
        and ρ is a float32 scalar.
      record: ``(state, step, sampled, grad_norm, correction_norm, rho) -> state``, called after
        the step. ``sampled`` (bool scalar) is the decision. On a sampled step ``grad_norm`` is ‖g‖
        and ``correction_norm`` is ‖PSF‖, or NaN if a gradient was not finite; on any other step
        both are 0 (float32 scalars). None if there is nothing to record, which saves the norms.
      is_positive: True promises that ``value`` never returns 0. The decision to sample then does
        not depend on the radius, which keeps the ``lax.cond`` under ``vmap``.
      name: of the policy, with its arguments, for ``repr``.
    """

    init: Callable[[Any], Any]
    value: Callable[[Any, jax.Array], Any]
    record: Callable[..., Any] | None = None
    is_positive: bool = False
    name: str = ""

    def __repr__(self) -> str:
        return describe(self)


RadiusLike = optax.ScalarOrSchedule | RadiusPolicy
"""What every method accepts as ``rho``: a number, a schedule ``step -> ρ``, or a policy."""


class HoldRatioState(NamedTuple):
    """State of ``hold_ratio``.

    Attributes:
      rho: float32 scalar, ρ of the next step.
      samples: int32 scalar, the number of samples that have moved it.
    """

    rho: jax.Array
    samples: jax.Array


_LARGEST_FACTOR = 10.0


@described
def hold_ratio(ratio: float, *, initial: float = 0.05, rate: float = 0.1) -> RadiusPolicy:
    r"""A radius that holds the ratio c = ‖PSF‖ / ‖g‖ at a given value c\*.

    To first order c is proportional to ρ. The k-th sample, k = 0, 1, ..., therefore moves ρ by

    .. math::
        \rho \leftarrow \rho\, \Big(\frac{c^*}{c}\Big)^{a_k}, \qquad
        a_k = \max\big(a, 1 / \sqrt{k + 1}\big),

    with the factor in brackets clipped to [1/10, 10]. Then c, and with it the method, depends
    neither on ``initial`` nor on the scale of the loss and of the parameters. A perturbed gradient
    that is not finite, although the gradient is, counts as the smallest factor. A c that may be due
    to rounding does not move ρ.

    A fixed ratio was worse than SAM with a tuned ρ on three of our tasks, so prefer a tuned ρ.

    A method that does not read the clean gradient (``momentum_sam``, ``m_sam``, ...) has to compute
    it for this policy. Methods whose perturbed gradient is taken on other examples (``esam`` with
    γ < 1, ``k_sam``, ``ausam``, ``sampa``) raise an error, because there c does not vanish with ρ.

    Args:
      ratio: c\* > 0.
      initial: ρ > 0 until the first sample.
      rate: a in (0, 1], how fast log ρ follows in the long run.

    Returns:
      A policy whose state is a ``HoldRatioState``.

    Example::

        tx = optax.chain(arsam_jax.sam(radius.hold_ratio(0.3)), optax.sgd(0.1, momentum=0.9))
    """
    _check.check_number("ratio", ratio, above=0)
    _check.check_number("initial", initial, above=0)
    _check.check_number("rate", rate, above=0, high=1)

    def init(params):
        del params
        return HoldRatioState(jnp.array(initial, jnp.float32), jnp.zeros([], jnp.int32))

    def record(state, step, sampled, grad_norm, correction_norm, rho):
        del step
        seen = _tree.safe_divide(correction_norm, grad_norm)
        is_seen = sampled & (grad_norm > 0) & jnp.isfinite(seen) & (seen > _tree.RATIO_ROUNDING)
        is_too_far = jnp.isnan(correction_norm) & jnp.isfinite(grad_norm)
        factor = jnp.asarray(ratio, jnp.float32) / jnp.where(is_seen, seen, 1)
        factor = jnp.where(is_too_far, 0, factor)
        gain = jax.lax.rsqrt(1 + state.samples.astype(jnp.float32))
        gain = jnp.maximum(gain, jnp.asarray(rate, jnp.float32))
        moved = rho * jnp.clip(factor, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR) ** gain
        is_moved = (is_seen | is_too_far) & (moved > 0) & jnp.isfinite(moved)
        return HoldRatioState(
            jnp.where(is_moved, moved, state.rho),
            jnp.where(is_moved, optax.safe_increment(state.samples), state.samples),
        )

    return RadiusPolicy(init, lambda state, step: state.rho, record, is_positive=True)


@described
def proportional_to_params(fraction: float = 0.009) -> RadiusPolicy:
    r"""The radius ρ = a ‖w₀‖, with w₀ the parameters that ``init`` gets.

    Use it when ρ has not been tuned. It does not depend on the scale of the loss or of the
    parameters. The default lies in the middle of SAM's tuned ρ on small networks that memorize
    small data sets, most of them with label noise. It is not a general law: for a ResNet-18 it is
    about 1, ten times the ρ that is used on CIFAR, and with large batches it was far from the best
    value. ‖w₀‖ is the norm of the trained parameters, for example of LoRA adapters or of a new last
    layer alone.

    If all parameters are 0, as they are when ``init`` gets shapes, ρ is NaN until a state is
    restored, and so are the updates.

    Args:
      fraction: a >= 0.

    Returns:
      A policy whose state is ‖w₀‖, a float32 scalar.

    Example::

        tx = optax.chain(arsam_jax.sam(radius.proportional_to_params()), optax.sgd(0.1))
    """
    _check.check_number("fraction", fraction, low=0)

    def init(params):
        norm = _tree.norm(params).astype(jnp.float32)
        return jnp.where(norm > 0, norm, jnp.nan)

    def value(state, step):
        del step
        return jnp.asarray(fraction, jnp.float32) * state

    is_positive = isinstance(fraction, numbers.Real) and fraction > 0
    return RadiusPolicy(init, value, is_positive=is_positive)
