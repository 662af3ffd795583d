"""``budgeted_sam`` with one part of it replaced: what decides when, what the steps between do, how
the second gradient is taken.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import arsam_jax
from arsam_jax import correction, sampling
from arsam_jax import probe as probes
from benchmarks.frontier import signals
from benchmarks.harness.methods import Method

BOUND = 0.1


def _variant(
    *,
    when: Callable[..., sampling.SamplingPolicy] | None = None,
    reuse: Callable[[], correction.Correction] | None = None,
    probe: Callable[[], probes.Probe] | None = None,
    exponent: float = -2 / 3,
    price: float = 1,
    share: float = 1 / 8,
) -> Method:
    """``budgeted_sam`` with other parts.

    Args:
      when: `(share, total_steps, seed) -> policy`.
      reuse: what the steps between the samples do.
      probe: how the second gradient is taken.
      exponent: of the share in the radius.
      price: of a sample, in gradients; at a price below 1 more samples are taken.
      share: at which it is compared.
    """

    def make(rho, share, steps, seed):
        share = share / price
        return arsam_jax.sharpness_aware(
            rho * share**exponent,
            sampling=when(share, steps, seed) if when else sampling.budgeted(share),
            correction=reuse() if reuse else _reuse_bound(None, BOUND, share)(),
            probe=probe() if probe else probes.perturb(),
        )

    return Method(make, (share,), lambda sampled, share: 1 + sampled * price)


def _signal(signal: Any) -> Callable[..., sampling.SamplingPolicy]:
    return lambda share, steps, seed: signals.budgeted(share, steps, signal, seed=seed)


def stratified(share, steps, seed):
    """One step of each 1/share, at random."""
    del steps
    length = round(1 / share)
    key = jax.random.key(seed)

    def decide(state, step, grad_norm):
        del grad_norm
        block, place = step // length, step % length
        return place == jax.random.randint(jax.random.fold_in(key, block), (), 0, length), state

    return sampling.SamplingPolicy(lambda: (), decide)


def early(share, steps, seed):
    """The first steps."""
    del seed
    return sampling.SamplingPolicy(
        lambda: (), lambda state, step, grad_norm: (step < round(share * steps), state)
    )


def part_of_batch() -> probes.Probe:
    """g + the PSF of the first quarter of the mini-batch: half a gradient."""

    def update(grads, state, params, *, rho, example_loss_fn, batch, **extra_args):
        part = jax.tree.map(lambda x: x[: len(x) // 4], batch)

        def part_grad_fn(params):
            return jax.grad(lambda params: example_loss_fn(params, part).mean())(params)

        point = jax.tree.map(lambda w, g: w + rho * g / optax.tree.norm(grads), params, grads)
        near, far = part_grad_fn(params), part_grad_fn(point)
        return jax.tree.map(lambda g, a, b: g + b - a, grads, near, far), state

    return probes.Probe(lambda params: (), update)


def hessian_vector() -> probes.Probe:
    """g + ρ H g / ‖g‖, the PSF to first order; forward over reverse costs about two gradients."""

    def update(grads, state, params, *, rho, grad_fn, **extra_args):
        direction = jax.tree.map(lambda g: rho * g / optax.tree.norm(grads), grads)
        _, psf = jax.jvp(grad_fn, (params,), (direction,))
        return jax.tree.map(jnp.add, grads, psf), state

    return probes.Probe(lambda params: (), update)


def rising_without_reuse(share: float) -> Method:
    """SAM every 1/share steps, its radius rising from ρ to ρ / share."""
    return Method(
        lambda rho, share, steps, seed: arsam_jax.sharpness_aware(
            lambda step: rho * (1 + (1 / share - 1) * jnp.float32(step) / steps),
            sampling=sampling.budgeted(share),
        ),
        (share,),
    )


def sam_rising(rho, share, steps, seed):
    """SAM itself, its radius rising from 0.6 ρ to 1.5 ρ."""
    del share, seed
    return arsam_jax.sam(lambda step: rho * (0.6 + 0.9 * jnp.float32(step) / steps))


def _reuse_bound(
    steps: int | None, bound: float | None, share: float = 1 / 8
) -> Callable[[], correction.Correction]:
    return lambda: correction.reuse_psf(steps, bound=bound, sample_bound=share ** (-1 / 2))


ABLATIONS = {
    "when: at random": _variant(when=lambda share, steps, seed: sampling.bernoulli(share, seed)),
    "when: at random in each 8": _variant(when=stratified),
    "when: ratio": _variant(when=_signal("ratio")),
    "when: change of the ratio": _variant(when=signals.ratio_change),
    "when: gradient norm": _variant(when=_signal("gradient_norm")),
    "when: distance moved": _variant(when=signals.moved),
    "when: late": _variant(when=lambda share, steps, seed: sampling.final_phase(steps, share)),
    "when: early": _variant(when=early),
    "reuse: none": _variant(reuse=correction.replace),
    "reuse: 2 steps": _variant(reuse=_reuse_bound(2, BOUND)),
    "reuse: bound 0.05": _variant(reuse=_reuse_bound(None, 0.05)),
    "reuse: bound 0.1 at 1/16": _variant(reuse=_reuse_bound(None, 0.1, 1 / 16), share=1 / 16),
    "reuse: bound 0.2": _variant(reuse=_reuse_bound(None, 0.2)),
    "reuse: bound 0.3 at rho/sqrt(share)": _variant(reuse=_reuse_bound(None, 0.3), exponent=-1 / 2),
    "reuse: no bound": _variant(reuse=_reuse_bound(None, None)),
    "samples: no bound": _variant(reuse=lambda: correction.reuse_psf(None, bound=BOUND)),
    "radius: rho/sqrt(share)": _variant(exponent=-1 / 2),
    "radius: rising, reuse: none": rising_without_reuse(1 / 8),
    "radius: rising, reuse: none, at 1/16": rising_without_reuse(1 / 16),
    "SAM: radius rising from 0.6 to 1.5 rho": Method(sam_rising, (1,)),
    "second: quarter of the batch": _variant(probe=part_of_batch, price=1 / 2),
    "second: Hessian-vector product": _variant(probe=hessian_vector, price=2),
    "second: along the momentum": _variant(probe=probes.momentum),
}
