"""What the studies compare: methods of the library, and parts of them, each at a price."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import arsam_jax
from arsam_jax import correction, sampling
from arsam_jax.methods import METHODS as KNOWN
from benchmarks.harness.training import MakeLink, Whole
from benchmarks.harness.workloads import Workload

SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
ALPHAS = (0.1, 0.2, 0.4, 0.8)  # ARSAM cannot be told a share


class Method(NamedTuple):
    """How a method is made and what it costs.

    Attributes:
      make: `(rho, share, total_steps, seed) -> link`, or a `Whole`.
      shares: the values of its price knob that are tried: the share of sampled steps where a
        method can be told one.
      cost: `(sampled, share) -> gradients a step`, from the share of steps that were sampled.
      is_between: whether it differs from two others in what it does to ρ alone, and lies between
        them, so that the search of these covers it.
      change: `(workload, share) -> workload`, what it needs of the training or does to it.
      has_own_radius: whether its ρ is in other units than SAM's, which it cannot take over.
    """

    make: MakeLink | Whole
    shares: tuple[float, ...] = SHARES
    cost: Callable[[float, float], float] = lambda sampled, share: 1 + sampled
    change: Callable[[Workload, float], Workload] = lambda workload, share: workload
    is_between: bool = False
    has_own_radius: bool = False


def every_k(exponent: float) -> MakeLink:
    """SAM every 1/share steps, at the radius ρ share^exponent."""
    return lambda rho, share, steps, seed: arsam_jax.sam_every_k(
        rho * share**exponent, round(1 / share)
    )


def gate_of_share(share, steps, seed) -> sampling.SamplingPolicy:
    """AE-SAM's, both ends of its threshold moved so that normal ‖g‖² give the share."""
    del seed
    shift = -((4 / 3) ** 0.5) * statistics.NormalDist().inv_cdf(share)
    return sampling.gradient_norm_gate(steps, lambda_1=shift - 1, lambda_2=shift + 1)


def gated(rho, share, steps, seed):
    return arsam_jax.sharpness_aware(rho, sampling=gate_of_share(share, steps, seed))


def random_with_reuse(rho, share, steps, seed):
    del steps
    return arsam_jax.sharpness_aware(
        rho, sampling=sampling.bernoulli(share, seed), correction=correction.reuse_psf(2)
    )


def every_step(
    name: str,
    gradients: float | None = None,
    has_own_radius: bool = False,
    factor: float = 1,
    **arguments,
) -> Method:
    """A method of the library that pays on every step; with no arguments as it is by default.

    Args:
      gradients: of a step, where the library does not say or the arguments change it.
      factor: of its ρ to SAM's.
    """
    known = KNOWN[name]
    price = known.gradients if gradients is None else gradients
    if price is None:
        raise ValueError(f"{name}: give gradients, an argument of its own decides its price")
    return Method(
        lambda rho, share, steps, seed: known.make(factor * rho, **arguments),
        shares=(1,),
        cost=lambda sampled, share: price,
        has_own_radius=has_own_radius,
    )


def arsam(**kwargs) -> MakeLink:
    return lambda rho, alpha, steps, seed: arsam_jax.arsam(rho, alpha, seed=seed, **kwargs)


METHODS = {
    "sgd": Method(
        lambda rho, share, steps, seed: arsam_jax.sharpness_aware(0, sampling=sampling.never()),
        shares=(0,),
    ),
    "sam": Method(lambda rho, share, steps, seed: arsam_jax.sam(rho), shares=(1,)),
    "sam_every_k": Method(every_k(0)),
    "sam_every_k_rho_sqrt": Method(every_k(-1 / 2), is_between=True),
    "sam_every_k_wide": Method(every_k(-2 / 3)),
    "looksam": Method(
        lambda rho, share, steps, seed: arsam_jax.looksam(rho, round(1 / share), 0.7)
    ),
    "ae_sam": Method(gated),
    "esam": Method(
        lambda rho, share, steps, seed: arsam_jax.esam(rho, gamma=share, seed=seed),
        cost=lambda sampled, share: 1 + sampled * (share + 2 / 3),  # two forward passes
    ),
    "momentum_sam": Method(
        lambda rho, share, steps, seed: arsam_jax.momentum_sam(rho),
        shares=(0,),
        cost=lambda sampled, share: 1,
    ),
    "arsam": Method(arsam(), ALPHAS),
    "arsam_a": Method(arsam(reuse_steps=0), ALPHAS),
    "arsam_segments_of_8": Method(arsam(segment_length=8), ALPHAS),  # at least 1 step in 8
    "random_reuse": Method(random_with_reuse),
    "final_phase_sam": Method(
        lambda rho, share, steps, seed: arsam_jax.final_phase_sam(rho, steps, share)
    ),
    "budgeted_sam": Method(
        lambda rho, share, steps, seed: arsam_jax.budgeted_sam(rho, share=share)
    ),
    "budgeted_sam_rising": Method(
        lambda rho, share, steps, seed: arsam_jax.budgeted_sam(rho, share=share, total_steps=steps)
    ),
    "asam": every_step("asam", factor=10, has_own_radius=True),
    "usam": every_step("usam", has_own_radius=True),
    "friendly_sam": every_step("friendly_sam"),
    "gradient_norm_penalty": every_step("gradient_norm_penalty", strength=0.7),
    "gsam": every_step("gsam", alpha=0.2),
    "m_sam": every_step("m_sam", num_microbatches=2),
    "sparse_sam": every_step("sparse_sam"),  # and a Fisher mask every 1,000 steps
    "rw_sam": every_step("rw_sam", gradients=2 + 1 / 3, delta=0.01),  # one forward pass, not two
    "multi_step_sam": every_step("multi_step_sam", gradients=3, num_steps=2),
}
