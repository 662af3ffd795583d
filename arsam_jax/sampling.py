"""Sampling policies: on which steps the second gradient is evaluated.

A policy sees only scalars that are equal on all devices, so that all devices take the same branch.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from arsam_jax import _check, _random, _tree
from arsam_jax._repr import describe, described

ParamsMask = Any | Callable[[Any], Any] | None
"""A tree of bools that is a prefix of the parameters, or a function that makes it from them.

With Flax NNX pass a function: the parameters are the pure ``nnx.State`` that ``nnx.Optimizer``
makes.
"""


class SamplingPolicy(NamedTuple):
    """Decides on which steps the second gradient is evaluated. Pure functions of scalars.

    Attributes:
      init: ``() -> state``.
      decide: ``(state, step, grad_norm) -> (bool[], state)``, called before the step. ``step``
        (int32 scalar) counts from 0, ``grad_norm`` is ‖g‖ (float32 scalar). A Python bool promises
        the same decision for every step. A ``grad_norm`` that is infinite or NaN must not stay in
        the state.
      record: ``(state, step, sampled, grad_norm, correction_norm, rho) -> state``, called after
        the step. ``sampled`` (bool scalar) is the decision. On a sampled step ``grad_norm`` is ‖g‖
        and ``correction_norm`` is ‖PSF‖, or NaN if a gradient was not finite; on any other step
        both are 0. ``rho`` is ρ(t). None if there is nothing to record, which saves the norms. A
        state that follows ``sampled`` alone does not depend on data, so the decision keeps its
        ``lax.cond`` under ``vmap``.
      norm: ``(tree, params) -> norm`` of a tree shaped like the parameters; measures both norms.
      name: of the policy, with its arguments, for ``repr``.
    """

    init: Callable[[], Any]
    decide: Callable[..., tuple[jax.Array | bool, Any]]
    record: Callable[..., Any] | None = None
    norm: Callable[[Any, Any], jax.Array] = lambda tree, params: _tree.norm(tree)
    name: str = ""

    def __repr__(self) -> str:
        return describe(self)


@described
def always() -> SamplingPolicy:
    """Samples every step: SAM's two gradients per step."""
    return SamplingPolicy(lambda: (), lambda state, step, grad_norm: (True, state))


@described
def never() -> SamplingPolicy:
    """Samples no step: the base optimizer, bit for bit and at its cost."""
    return SamplingPolicy(lambda: (), lambda state, step, grad_norm: (False, state))


@described
def every_k(k: int) -> SamplingPolicy:
    """Samples the steps 0, k, 2k, ...: 1 + 1/k gradients per step.

    Args:
      k: >= 1.
    """
    _check.check_integer("k", k, low=1)

    def decide(state, step, grad_norm):
        del grad_norm
        return step % jnp.asarray(k, jnp.int32) == 0, state

    return SamplingPolicy(lambda: (), decide)


class BernoulliState(NamedTuple):
    """State of ``bernoulli``: ``key``, uint32 (2,), folded with the step for each draw."""

    key: jax.Array


@described
def bernoulli(probability: chex.Numeric | Callable, seed: int = 0) -> SamplingPolicy:
    """Samples each step independently with a probability p: 1 + p gradients per step.

    Args:
      probability: p in [0, 1], or a schedule ``step -> p``.
      seed: of the draws. The draw of a step depends on the seed and the step alone.
    """
    _check.check_scalar_or_schedule("probability", probability, low=0, high=1)
    _check.check_seed(seed)

    def decide(state, step, grad_norm):
        del grad_norm
        p = probability(step) if callable(probability) else probability
        return _random.draw(state.key, step, p), state

    return SamplingPolicy(
        lambda: BernoulliState(_random.make_key(seed, "sampling.bernoulli")), decide
    )


@described
def final_phase(total_steps: int, share: float) -> SamplingPolicy:
    """Samples all of the last ``share`` of the steps: 1 + share gradients per step.

    Args:
      total_steps: the length of the run, >= 1.
      share: in [0, 1]. The sampled steps are the last round(share · total_steps), and all steps
        after ``total_steps`` if there are any.

    References:
      Temperon (arXiv 2609.17575): a tail aligned with the decay of the learning rate.
    """
    _check.check_integer("total_steps", total_steps, low=1)
    _check.check_number("share", share, low=0, high=1)

    def decide(state, step, grad_norm):
        del grad_norm
        if isinstance(share, numbers.Real) and isinstance(total_steps, numbers.Real):
            num_sampled = round(float(share) * int(total_steps))
        else:  # arrays, from optax.inject_hyperparams
            wanted = jnp.asarray(share, jnp.float32) * jnp.asarray(total_steps, jnp.float32)
            num_sampled = jnp.round(wanted).astype(jnp.int32)
        first = jnp.asarray(total_steps, jnp.int32) - num_sampled
        return (step >= first) & jnp.greater(num_sampled, 0), state

    return SamplingPolicy(lambda: (), decide)


class GradientNormGateState(NamedTuple):
    """State of ``gradient_norm_gate``.

    Attributes:
      mean: float32 scalar, the moving mean μ of ‖g‖².
      deviation: float32 scalar, the root σ of its moving variance.
    """

    mean: jax.Array
    deviation: jax.Array


@described
def gradient_norm_gate(
    total_steps: int, *, decay: float = 0.9, lambda_1: float = -1, lambda_2: float = 1
) -> SamplingPolicy:
    r"""AE-SAM's policy: samples where the gradient is large, as it is in sharp regions.

    With x = ‖g‖² and both averages starting at 0, step t of T is sampled if

    .. math::
        x \ge \mu + c_t \sigma, \quad
        \mu \leftarrow \delta \mu + (1 - \delta) x, \quad
        \sigma^2 \leftarrow \delta \sigma^2 + (1 - \delta) (x - \mu)^2, \quad
        c_t = \tfrac tT \lambda_1 + (1 - \tfrac tT) \lambda_2.

    The averages are updated first. For normally distributed x and the default λ the share of
    sampled steps rises from 16 to 84 %. The root σ is updated directly, so that the fourth power of
    a norm cannot overflow; a norm whose square is not finite in float32 is ignored.

    Args:
      total_steps: T >= 1, the length of the run.
      decay: δ in [0, 1).
      lambda_1: c at the end.
      lambda_2: c at the start.

    References:
      Jiang et al., An Adaptive Policy to Employ SAM (arXiv 2304.14647), equations 5 to 7.
    """
    _check.check_integer("total_steps", total_steps, low=1)
    _check.check_number("decay", decay, low=0, below=1)
    _check.check_number("lambda_1", lambda_1)
    _check.check_number("lambda_2", lambda_2)

    def init():
        return GradientNormGateState(jnp.zeros([], jnp.float32), jnp.zeros([], jnp.float32))

    def decide(state, step, grad_norm):
        x = jnp.square(grad_norm)
        old = jnp.asarray(decay, jnp.float32)
        mean = old * state.mean + (1 - old) * x
        # The variance is the fourth power of a norm and would overflow. Its root does not.
        parts = jnp.sqrt(old) * state.deviation, jnp.sqrt(1 - old) * jnp.abs(x - mean)
        is_zero = (parts[0] == 0) & (parts[1] == 0)  # where the derivative would be NaN
        safe = jnp.where(is_zero, 1, parts[0])
        deviation = jnp.where(is_zero, 0, jnp.hypot(safe, parts[1]))
        is_finite = jnp.isfinite(x)
        mean = jnp.where(is_finite, mean, state.mean)
        deviation = jnp.where(is_finite, deviation, state.deviation)
        progress = step.astype(jnp.float32) / jnp.asarray(total_steps, jnp.float32)
        progress = jnp.minimum(progress, 1)
        end, start = jnp.asarray(lambda_1, jnp.float32), jnp.asarray(lambda_2, jnp.float32)
        threshold = progress * end + (1 - progress) * start
        return x >= mean + threshold * deviation, GradientNormGateState(mean, deviation)

    return SamplingPolicy(init, decide)


class BudgetedState(NamedTuple):
    """State of ``budgeted``: ``credit``, float32 scalar, the number of samples that are due."""

    credit: jax.Array


@described
def budgeted(share: float | None = None, *, speedup: float | None = None) -> SamplingPolicy:
    r"""Samples an exact share of the steps, evenly spaced: 1 + share gradients per step.

    Each step adds the share to a credit, and each sample subtracts 1. A step is sampled if the
    credit is at least 1/2, so the number of samples never differs from share · t by more than 1.
    The credit is limited to 1.5: if nothing can be sampled for a while, because ρ(t) = 0, the
    missed samples are not made up for.

    Args:
      share: the share of sampled steps, in [0, 1].
      speedup: instead of ``share``, the ideal speed-up over SAM in gradients, in [1, 2]; the share
        is 2 / speedup − 1.
    """
    if (share is None) == (speedup is None):
        raise ValueError(f"Give either share or speedup, got {share!r} and {speedup!r}.")
    if speedup is not None:
        _check.check_number("speedup", speedup, low=1, high=2)
    budget: Any = share if speedup is None else 2 / speedup - 1
    _check.check_number("share", budget, low=0, high=1)

    def decide(state, step, grad_norm):
        del step, grad_norm
        credit = jnp.minimum(state.credit + jnp.asarray(budget, jnp.float32), 1.5)
        return credit >= 0.5, BudgetedState(credit)

    def record(state, step, sampled, grad_norm, correction_norm, rho):
        del step, grad_norm, correction_norm, rho
        return BudgetedState(state.credit - sampled.astype(jnp.float32))

    return SamplingPolicy(lambda: BudgetedState(jnp.zeros([], jnp.float32)), decide, record)


class AutoregressiveState(NamedTuple):
    """State of ``autoregressive``; every field but the key is a scalar.

    Attributes:
      key: uint32 (2,), folded with the step for each draw.
      ratio: float32, c = ‖PSF‖ / ‖g‖ of the last sampled step; 0 before the first.
      ratio_rho: float32, ρ of that step.
      ema_ratio: float32, r̂, the moving average of the relative change of the ratio.
      samples: float32, s, the expected number of samples in a segment.
      probability: float32, p = s / M, of sampling each step of this segment.
      segment_samples: int32, the number of samples taken in this segment so far.
    """

    key: jax.Array
    ratio: jax.Array
    ratio_rho: jax.Array
    ema_ratio: jax.Array
    samples: jax.Array
    probability: jax.Array
    segment_samples: jax.Array


@described
def autoregressive(
    alpha: float,
    *,
    ema_decay: float = 0.9,
    segment_length: int = 50,
    initial_samples: float = 1,
    min_samples: float = 1,
    warmup_steps: int = 0,
    norm_mask: ParamsMask = None,
    seed: int = 0,
) -> SamplingPolicy:
    r"""ARSAM's controller: samples more often while ‖PSF‖ / ‖g‖ grows.

    On a sampled step i, with c_i = ‖PSF_i‖ / ‖g_i‖ and c_prev the ratio of the previous sampled
    step,

    .. math::
        c_{prev} = \frac{\rho_i}{\rho_{i-1}} \frac{\|PSF_{i-1}\|}{\|g_{i-1}\|}, \qquad
        r_i = (c_i - c_{prev}) / c_{prev}, \qquad
        \hat r \leftarrow \beta \hat r + (1 - \beta) r_i.

    The first factor makes ratios at different radii comparable, since c is proportional to ρ to
    first order. It is 1 if ρ is constant. At the end of each segment of M steps

    .. math::
        s \leftarrow \mathrm{clip}(s\,(1 + \alpha \hat r), s_{min}, M), \qquad p = s / M.

    A segment without a sample leaves s unchanged. The first sample only sets c. If c_prev is 0, c
    is not finite, or ρ has changed and a ratio may be due to rounding, r̂ stays as it is.

    Args:
      alpha: α >= 0, how strongly a change of the ratio moves the number of samples.
      ema_decay: β in [0, 1).
      segment_length: M, in steps.
      initial_samples: s in the first segment, in [min_samples, segment_length].
      min_samples: the smallest s, in [0, segment_length].
      warmup_steps: I_start. The first ``warmup_steps`` steps are all sampled and do not change s.
      norm_mask: restricts both norms of c to some leaves (the paper uses the last few layers).
      seed: of the draws. Two policies with equal seeds sample the same steps.

    Returns:
      A policy that costs 1 + mean(p) gradients per step.

    References:
      Deng and Pang, ARSAM (arXiv 2510.03763), equations 9 to 13 and algorithm 1.
    """
    _check.check_number("alpha", alpha, low=0)
    _check.check_number("ema_decay", ema_decay, low=0, below=1)
    _check.check_integer("segment_length", segment_length, low=1)
    _check.check_integer("warmup_steps", warmup_steps, low=0)
    _check.check_seed(seed)
    if isinstance(norm_mask, bool | jax.Array):  # inject_hyperparams has called the function
        array = jnp.asarray(norm_mask)
        _check.check_static("norm_mask", array, "a tree of bools or a function that makes it")
    if not isinstance(segment_length, Tracer):
        most = float(segment_length)
        _check.check_number("min_samples", min_samples, low=0, high=most)
        if not isinstance(min_samples, Tracer):
            least = float(min_samples)
            _check.check_number("initial_samples", initial_samples, low=least, high=most)

    def init():
        samples = jnp.array(initial_samples, jnp.float32)  # a copy, which may be donated
        return AutoregressiveState(
            key=_random.make_key(seed, "sampling.autoregressive"),
            ratio=jnp.zeros([], jnp.float32),
            ratio_rho=jnp.zeros([], jnp.float32),
            ema_ratio=jnp.zeros([], jnp.float32),
            samples=samples,
            probability=samples / jnp.asarray(segment_length, jnp.float32),
            segment_samples=jnp.zeros([], jnp.int32),
        )

    def decide(state, step, grad_norm):
        del grad_norm
        drawn = _random.draw(state.key, step, state.probability)
        return drawn | (step < jnp.asarray(warmup_steps, jnp.int32)), state

    def record(state, step, sampled, grad_norm, correction_norm, rho):
        sampled &= ~jnp.isnan(correction_norm)  # A refused sample does not count.
        ratio = _tree.safe_divide(correction_norm, grad_norm)
        is_ratio = sampled & (grad_norm > 0) & jnp.isfinite(grad_norm) & jnp.isfinite(ratio)
        is_same_rho = rho == state.ratio_rho
        is_comparable = is_same_rho | (jnp.minimum(ratio, state.ratio) > _tree.RATIO_ROUNDING)
        previous = state.ratio * jnp.where(is_same_rho, 1, _tree.safe_divide(rho, state.ratio_rho))
        change = _tree.safe_divide(ratio - previous, previous)
        decay = jnp.asarray(ema_decay, jnp.float32)
        ema_ratio = jnp.where(
            is_ratio & (previous > 0) & is_comparable & jnp.isfinite(change),
            decay * state.ema_ratio + (1 - decay) * change,
            state.ema_ratio,
        )
        segment_samples = state.segment_samples + sampled.astype(jnp.int32)

        done = jnp.asarray(optax.safe_increment(step))
        is_segment_end = done % jnp.asarray(segment_length, jnp.int32) == 0
        is_moved = is_segment_end & (done > jnp.asarray(warmup_steps, jnp.int32))
        samples = jnp.clip(
            state.samples * (1 + jnp.asarray(alpha, jnp.float32) * ema_ratio),
            jnp.asarray(min_samples, jnp.float32),
            jnp.asarray(segment_length, jnp.float32),
        )
        samples = jnp.where(is_moved & (segment_samples > 0), samples, state.samples)
        return AutoregressiveState(
            key=state.key,
            ratio=jnp.where(is_ratio, ratio, state.ratio),
            ratio_rho=jnp.where(is_ratio, rho, state.ratio_rho),
            ema_ratio=ema_ratio,
            samples=samples,
            probability=samples / jnp.asarray(segment_length, jnp.float32),
            segment_samples=jnp.where(is_segment_end, 0, segment_samples),
        )

    return SamplingPolicy(init, decide, record, masked_norm(norm_mask))


def masked_norm(mask: ParamsMask) -> Callable[[Any, Any], jax.Array]:
    """Returns ``(tree, params) -> norm`` over the leaves that a mask keeps; None keeps all."""

    def norm(tree: Any, params: Any) -> jax.Array:
        if mask is None:
            return _tree.norm(tree)
        kept = mask(params) if callable(mask) else mask
        keeps = jax.tree.leaves(kept)
        are_bools = all(np.ndim(x) == 0 and isinstance(np.asarray(x).item(), bool) for x in keeps)
        if jax.tree.leaves(tree) and not (are_bools and any(keeps)):
            raise ValueError(
                f"norm_mask must be a tree of bools, not all of them False, got {kept!r}."
            )
        try:
            masked = jax.tree.map(lambda keep, subtree: subtree if keep else None, kept, tree)
        except ValueError as error:
            raise ValueError(
                f"norm_mask must be a prefix of the parameters, {jax.tree.structure(tree)}, got"
                f" {kept!r}."
            ) from error
        return _tree.norm(masked)

    return norm
