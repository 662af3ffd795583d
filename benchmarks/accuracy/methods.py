"""Every method and peer that is compared, with its hyperparameters and its cost.

This is the only list of methods in the benchmarks. The facts about the library's methods (cost,
extra arguments) come from ``arsam_jax.methods.METHODS``.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import arsam_jax
from arsam_jax import radius, sampling
from arsam_jax.methods import METHODS as FACTS
from benchmarks.accuracy.tasks import Task

FORWARD = 1 / 3  # the cost of a forward pass, in gradients
MICROBATCHES = 2
Transform = optax.GradientTransformation  # whose update may take extra arguments


class Context(NamedTuple):
    """What a method is made from."""

    rho: Any
    value: float  # of the method's own hyperparameter
    total_steps: int
    seed: Any  # of the method's random draws
    base: Transform  # the base optimizer
    schedule: Any  # of the learning rate
    task: Task  # what is trained


class Method(NamedTuple):
    """A method, its hyperparameter and its cost.

    Attributes:
      make: returns the whole optimizer.
      cost: ``(sampled, value) -> gradients per step``, from the share of sampled steps.
      hyperparameter: the name of the one whose values are compared, or "" if there is none.
      values: its values. Each is reported, unless the method is searched.
      is_searched: whether the value is chosen on each task, on validation examples.
      uses_base_setting: whether the method takes over the learning rate and weight decay of the
        base optimizer. All others take over those of SAM.
      change: ``(task, value) -> task``, what the method changes about the training.
    """

    make: Callable[[Context], Transform]
    cost: Callable[[float, float], float]
    hyperparameter: str = ""
    values: tuple[float, ...] = (0,)
    is_searched: bool = False
    uses_base_setting: bool = False
    change: Callable[[Task, float], Task] = lambda task, value: task


def first(
    link: Callable[[Context], Transform],
    hyperparameter: str = "",
    values: tuple[float, ...] = (0,),
    cost: Callable[[float, float], float] = lambda sampled, value: 1 + sampled,
    **more: Any,
) -> Method:
    """A method that is the first transformation in front of the base optimizer."""

    def make(context):
        return optax.chain(link(context), context.base)

    return Method(make, cost, hyperparameter, values, **more)


def fixed(name: str) -> Callable[[float, float], float]:
    """The cost of a step of a method of the library that samples every step."""
    gradients: Any = FACTS[name].gradients
    return lambda sampled, value: gradients


def base_with(change: Callable[[Task, float], Task], *arguments: Any, **more: Any) -> Method:
    """The base optimizer, without a second gradient, in a changed training run."""
    return first(_never, *arguments, uses_base_setting=True, change=change, **more)


def _never(context: Context) -> Transform:
    del context
    return arsam_jax.sharpness_aware(0, sampling=sampling.never())


def _in_microbatches(task: Task, value: float) -> Task:
    del value
    return task._replace(num_microbatches=MICROBATCHES)


def _gated(context: Context) -> Transform:
    """AE-SAM with both ends of its threshold moved, so that normal ‖g‖² give this share."""
    shift = -math.sqrt(4 / 3) * statistics.NormalDist().inv_cdf(context.value)
    gate = sampling.gradient_norm_gate(context.total_steps, lambda_1=shift - 1, lambda_2=shift + 1)
    return arsam_jax.sharpness_aware(context.rho, sampling=gate)


def _decoupled_wsam(context: Context) -> Transform:
    link = arsam_jax.wsam(context.rho, context.value)
    return arsam_jax.decouple(link, context.base, context.schedule)


def _ausam(context: Context) -> Transform:
    """Its weights rise over the same part of the run as the authors', 30 of 200 epochs."""
    epochs = context.task.epochs
    return arsam_jax.ausam(
        context.rho,
        context.task.num_train,
        context.total_steps // epochs,
        share=context.value,
        rise_epochs=0.15 * epochs,
        seed=context.seed,
    )


def _arsam(**arguments: Any) -> Callable[[Context], Transform]:
    return lambda c: arsam_jax.arsam(c.rho, c.value, seed=c.seed, **arguments)


def _budgeted(rho: Any = None, **arguments: Any) -> Callable[[Context], Transform]:
    """``budgeted_sam`` at this share, with SAM's ρ if none is given."""
    return lambda c: arsam_jax.budgeted_sam(
        c.rho if rho is None else rho, share=c.value, **arguments
    )


SHARES = (1 / 4, 1 / 8, 1 / 16)
ALPHAS = (0.1, 0.2, 0.4, 0.8)

METHODS = {
    "base": first(_never, uses_base_setting=True),
    "sam": first(lambda c: arsam_jax.sam(c.rho)),
    # The paper's method and the library's own.
    "arsam": first(_arsam(), "alpha", ALPHAS),
    "arsam_segments_of_8": first(_arsam(segment_length=8), "alpha", ALPHAS),
    "arsam_without_reuse": first(_arsam(reuse_steps=0), "alpha", ALPHAS),
    "budgeted_sam": first(_budgeted(), "share", (1 / 2, *SHARES)),
    "budgeted_sam_rising": first(
        lambda c: arsam_jax.budgeted_sam(c.rho, share=c.value, total_steps=c.total_steps),
        "share",
        (1 / 2, *SHARES),
    ),
    "budgeted_m_sam": first(
        _budgeted(num_microbatches=MICROBATCHES), "share", SHARES, change=_in_microbatches
    ),
    # A radius of 0.009 ‖w₀‖, for which nothing is tuned.
    "sam_untuned_rho": first(lambda c: arsam_jax.sam(radius.proportional_to_params())),
    "budgeted_m_sam_untuned_rho": first(
        _budgeted(radius.proportional_to_params(), num_microbatches=MICROBATCHES),
        "share",
        SHARES,
        change=_in_microbatches,
    ),
    # Published methods that sample a share of the steps.
    "sam_every_k": first(
        lambda c: arsam_jax.sam_every_k(c.rho, round(1 / c.value)), "share", (1 / 2, *SHARES)
    ),
    "sam_every_k_wide": first(
        lambda c: arsam_jax.sam_every_k(c.rho * c.value ** (-2 / 3), round(1 / c.value)),
        "share",
        (1 / 2, *SHARES),
    ),
    "final_phase_sam": first(
        lambda c: arsam_jax.final_phase_sam(c.rho, c.total_steps, c.value),
        "share",
        (1 / 2, *SHARES),
    ),
    "ae_sam": first(_gated, "share", (1 / 2, *SHARES)),
    "looksam": first(
        lambda c: arsam_jax.looksam(c.rho, 4, c.value),
        "alpha",
        (0.05, 0.1, 0.2, 0.4, 0.7),
        is_searched=True,
    ),
    # Published methods that cost about one gradient.
    "momentum_sam": first(
        lambda c: arsam_jax.momentum_sam(c.value * c.rho),
        "times SAM's ρ",
        (1, 2, 4, 8, 16),
        cost=fixed("momentum_sam"),
        is_searched=True,
    ),
    "momentum_sam_fixed": first(
        lambda c: arsam_jax.momentum_sam(c.value * c.rho),
        "times SAM's ρ",
        (5,),
        cost=fixed("momentum_sam"),
    ),
    "k_sam": first(
        lambda c: arsam_jax.k_sam(c.rho, c.value),
        "share",
        (1 / 2, 3 / 4),
        cost=lambda sampled, share: 2 * share + FORWARD,
        is_searched=True,
    ),
    "ausam": first(_ausam, "share", (1 / 2,), cost=lambda sampled, share: 2 * share),
    "esam": first(
        lambda c: arsam_jax.esam(c.rho, beta=c.value, gamma=1 / 2, seed=c.seed),
        "beta",
        (0.5, 0.8),
        cost=lambda sampled, beta: 1 + 1 / 2 + 2 * FORWARD,
        is_searched=True,
    ),
    # Published methods with a second gradient, or more, on every step.
    "asam": first(
        lambda c: arsam_jax.asam(c.value * c.rho),
        "times SAM's ρ",
        (1, 2, 5, 10, 20),
        is_searched=True,
    ),
    "friendly_sam": first(lambda c: arsam_jax.friendly_sam(c.rho)),
    "gam": first(
        lambda c: arsam_jax.gam(c.rho, grad_rho=c.value * c.rho),
        "grad_rho",
        (1 / 5, 1.0),
        cost=fixed("gam"),
        is_searched=True,
    ),
    "gradient_norm_penalty": first(
        lambda c: arsam_jax.gradient_norm_penalty(c.rho, c.value),
        "strength",
        (0.4, 0.7),
        is_searched=True,
    ),
    "gsam": first(
        lambda c: arsam_jax.gsam(c.rho, c.value), "alpha", (0.1, 0.2, 0.4), is_searched=True
    ),
    "m_sam": first(lambda c: arsam_jax.m_sam(c.rho, MICROBATCHES)),
    "multi_step_sam": first(
        lambda c: arsam_jax.multi_step_sam(c.rho, 2), cost=lambda sampled, value: 3
    ),
    "rw_sam": first(lambda c: arsam_jax.rw_sam(c.rho, seed=c.seed), cost=fixed("rw_sam")),
    "sampa": first(lambda c: arsam_jax.sampa(c.rho, c.schedule)),
    "sparse_sam": first(
        lambda c: arsam_jax.sparse_sam(c.rho)
    ),  # and a Fisher mask every 1,000 steps
    "wsam": Method(
        _decoupled_wsam, lambda sampled, gamma: 2, "gamma", (0.5, 0.7, 0.9), is_searched=True
    ),
    # The base optimizer without a second gradient.
    "base_epochs": base_with(
        lambda task, factor: task._replace(epochs=round(factor * task.epochs)),
        "times the epochs",
        (1 / 4, 1 / 2, 5 / 4, 2),
        cost=lambda sampled, factor: factor,
    ),
    "base_microbatches": base_with(_in_microbatches),
}
