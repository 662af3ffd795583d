"""Policies of the ablations: a budget met exactly, spent sooner where a signal is high.

None was better than even spacing (docs/frontier.md), which is why the library has that alone.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from arsam_jax.sampling import SamplingPolicy


class SignalledState(NamedTuple):
    """The samples that are due, moments of the signal, its score in [-1, 1]; float32 scalars."""

    credit: jax.Array
    mean: jax.Array
    variance: jax.Array
    score: jax.Array


def budgeted(
    share: float,
    total_steps: int | None,
    signal: Literal["random", "gradient_norm", "ratio"],
    *,
    slack: float = 2.0,
    seed: int = 0,
) -> SamplingPolicy:
    r"""Samples where credit_t + λ_t z_t >= 1/2 for a score z of the signal.

    λ_t is ``slack``, or min(share, 1 − share) times the steps that remain where that is less, so
    the samples never stray from share · t by more than 1 + λ and the budget is met at the end.

    Args:
      share: of sampled steps, in [0, 1].
      total_steps: of the run; None keeps λ to the end.
      signal: "random", a uniform draw; "gradient_norm", tanh of the standardised ‖g‖² (moving
        averages, decay 0.9), as AE-SAM; "ratio", the same of log(‖PSF‖ / ‖g‖) of the last sample.
      slack: λ >= 0, in samples.
      seed: of the random signal.
    """
    key = jax.random.key(seed)

    def watch(state, value):
        """Moves the moments by one value of the signal."""
        mean = 0.9 * state.mean + 0.1 * value
        variance = 0.9 * state.variance + 0.1 * jnp.square(value - mean)
        spread = jnp.sqrt(variance)
        score = jnp.tanh(
            jnp.where(spread > 0, (value - mean) / jnp.where(spread > 0, spread, 1), 0)
        )
        return state._replace(mean=mean, variance=variance, score=score)

    def decide(state, step, grad_norm):
        if signal == "random":
            draw = jax.random.uniform(jax.random.fold_in(key, step), dtype=jnp.float32)
            state = state._replace(score=2 * draw - 1)
        elif signal == "gradient_norm":
            state = watch(state, jnp.square(grad_norm))
        most = freedom = jnp.asarray(slack, jnp.float32)
        if total_steps is not None:
            remaining = (jnp.asarray(total_steps, jnp.int32) - step - 1).astype(jnp.float32)
            freedom = jnp.clip(min(share, 1 - share) * remaining, 0, most)
        credit = jnp.minimum(state.credit + jnp.asarray(share, jnp.float32), 1.5 + most)
        return credit + freedom * state.score >= 0.5, state._replace(credit=credit)

    def record(state, step, sampled, grad_norm, correction_norm, rho):
        del step, rho
        is_paid = sampled | jnp.isnan(correction_norm)
        state = state._replace(credit=state.credit - is_paid.astype(jnp.float32))
        if signal != "ratio":
            return state
        value = jnp.log(correction_norm / grad_norm)
        seen = watch(state, value)
        is_seen = sampled & jnp.isfinite(value)
        return jax.tree.map(lambda new, old: jnp.where(is_seen, new, old), seen, state)

    def init():
        return SignalledState(*(jnp.zeros([], jnp.float32) for _ in SignalledState._fields))

    return SamplingPolicy(init, decide, record)


def moved(share, steps, seed):
    """Sooner the further the parameters moved since the sample, Σ ‖g‖: theorem 3 of ARSAM."""
    inner = budgeted(share, steps, "gradient_norm", seed=seed)

    def decide(state, step, grad_norm):
        path = state[1] + grad_norm
        wanted, policy = inner.decide(state[0], step, jnp.sqrt(path))  # it squares
        return wanted, (policy, path)

    def record(state, step, sampled, grad_norm, correction_norm, rho):
        assert inner.record is not None
        policy = inner.record(state[0], step, sampled, grad_norm, correction_norm, rho)
        return policy, jnp.where(sampled, 0, state[1])

    return SamplingPolicy(lambda: (inner.init(), jnp.float32(0)), decide, record)


def ratio_change(share, steps, seed):
    """Sooner after log(c / c of the sample before) was large: ARSAM's signal without its bias."""
    inner = budgeted(share, steps, "ratio", seed=seed)

    def decide(state, step, grad_norm):
        wanted, policy = inner.decide(state[0], step, grad_norm)
        return wanted, (policy, state[1])

    def record(state, step, sampled, grad_norm, correction_norm, rho):
        policy, before = state
        ratio = correction_norm / jnp.where(sampled, grad_norm, 1)
        assert inner.record is not None
        seen = inner.record(policy, step, sampled, before, ratio, rho)
        return seen, jnp.where(sampled, ratio, before)

    return SamplingPolicy(lambda: (inner.init(), jnp.float32(1)), decide, record)
