"""The methods that a training program offers by name, whatever its task: one line each."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import optax

import arsam_jax
from arsam_jax.methods import METHODS as _FACTS

NUM_MICROBATCHES = 2
SHARE_OF_EXAMPLES = 0.5  # of K-SAM and AUSAM
MOMENTUM_SAM_RADIUS = 5
"""In units of --rho: a momentum is no gradient of the batch. 15 in its authors' runs, which is too
far on digits."""


class Options(Protocol):
    """The settings that a program gives to its methods."""

    @property
    def rho(self) -> float: ...
    @property
    def rho_of_weights(self) -> float: ...
    @property
    def alpha(self) -> float: ...
    @property
    def segment_length(self) -> int: ...
    @property
    def reuse_steps(self) -> int: ...
    @property
    def share(self) -> float: ...


class Training(NamedTuple):
    """The training that a method is for.

    Attributes:
      options: the settings of the methods.
      total_steps: of the whole training.
      steps_per_epoch: of a pass over the examples.
      num_examples: at least as many as there are.
      schedule: the learning rate of the base optimizer.
      seed: of what a method draws.
    """

    options: Options
    total_steps: int
    steps_per_epoch: int
    num_examples: int
    schedule: optax.Schedule
    seed: int

    def rho(self, factor: float = 1) -> arsam_jax.radius.RadiusLike:
        """The radius, times a factor."""
        if self.options.rho_of_weights:
            return arsam_jax.radius.proportional_to_params(factor * self.options.rho_of_weights)
        return factor * self.options.rho

    @property
    def five_epochs(self) -> int:
        """Steps between the masks of sparse SAM, as in its authors' code."""
        return max(1, 5 * self.steps_per_epoch)


# All but the settings is as in the papers, but for MOMENTUM_SAM_RADIUS, GAM's second radius, the
# one of what is SAM in it, and the Fisher masks of sparse SAM, which look at the mini-batch.
METHODS: dict[str, Callable[[Training], optax.GradientTransformation]] = {
    "sam": lambda t: arsam_jax.sam(t.rho()),
    "arsam": lambda t: _arsam(t, t.options.reuse_steps),
    "arsam_a": lambda t: _arsam(t, reuse_steps=0),
    "budgeted_sam": lambda t: arsam_jax.budgeted_sam(t.rho(), share=t.options.share),
    "sam_every_k": lambda t: arsam_jax.sam_every_k(t.rho(), k=5),
    "looksam": lambda t: arsam_jax.looksam(t.rho()),
    "ae_sam": lambda t: arsam_jax.ae_sam(t.rho(), t.total_steps),
    "final_phase_sam": lambda t: arsam_jax.final_phase_sam(t.rho(), t.total_steps, share=0.25),
    "esam": lambda t: arsam_jax.esam(t.rho(), seed=t.seed),
    "sparse_sam": lambda t: arsam_jax.sparse_sam(
        t.rho(),
        mask=lambda sparsity: arsam_jax.sparse.fisher_mask(sparsity, refresh_every=t.five_epochs),
    ),
    "sparse_sam_dynamic": lambda t: arsam_jax.sparse_sam(
        t.rho(),
        mask=lambda sparsity: arsam_jax.sparse.dynamic_mask(
            sparsity, t.total_steps, refresh_every=t.five_epochs, seed=t.seed
        ),
    ),
    "gradient_norm_penalty": lambda t: arsam_jax.gradient_norm_penalty(t.rho(), strength=0.7),
    "asam": lambda t: arsam_jax.asam(t.rho()),
    "gsam": lambda t: arsam_jax.gsam(t.rho(), alpha=0.2),
    "usam": lambda t: arsam_jax.usam(t.rho()),
    "m_sam": lambda t: arsam_jax.m_sam(t.rho(), NUM_MICROBATCHES),
    "multi_step_sam": lambda t: arsam_jax.multi_step_sam(t.rho(), num_steps=2),
    "momentum_sam": lambda t: arsam_jax.momentum_sam(t.rho(MOMENTUM_SAM_RADIUS)),
    "friendly_sam": lambda t: arsam_jax.friendly_sam(t.rho()),
    "gam": lambda t: arsam_jax.gam(t.rho(), grad_rho=t.options.rho),
    "wsam": lambda t: arsam_jax.wsam(t.rho()),  # decoupled: make_method
    "sampa": lambda t: arsam_jax.sampa(t.rho(), t.schedule),
    "rw_sam": lambda t: arsam_jax.rw_sam(t.rho(), seed=t.seed),
    "k_sam": lambda t: arsam_jax.k_sam(t.rho(), SHARE_OF_EXAMPLES),
    "ausam": lambda t: arsam_jax.ausam(
        t.rho(),
        t.num_examples,
        max(1, t.steps_per_epoch),
        share=SHARE_OF_EXAMPLES,
        seed=t.seed,
    ),
}

_GRADIENTS = {name: facts.gradients for name, facts in _FACTS.items() if facts.gradients} | {
    "multi_step_sam": 3.0,
    **dict.fromkeys(("k_sam", "ausam"), 1 / 3 + 2 * SHARE_OF_EXAMPLES),
}
_SHARES = {
    "arsam": 0.5,
    "arsam_a": 0.5,
    "ae_sam": 0.5,  # at a guess: they adapt it
    "sam_every_k": 1 / 5,
    "looksam": 1 / 5,
    "final_phase_sam": 1 / 4,
}


def gradients(name: str) -> float:
    """About what a sampled step costs, in gradients of the mini-batch; one without a method."""
    return _GRADIENTS.get(name, 2.0) if name in METHODS else 1.0


def step_cost(name: str, options: Options) -> float:
    """About what a step costs on average, in gradients, before the share of samples is known."""
    share = options.share if name == "budgeted_sam" else _SHARES.get(name, 1.0)
    return 1 + share * (gradients(name) - 1)


def make_method(
    name: str, training: Training, base: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The whole optimizer: methods differ in the first link alone; WSAM's goes past the rest.

    Args:
      name: one of ``METHODS``; of any other, ``base`` is the whole.
      base: the base optimizer, of the learning rate ``training.schedule``.
    """
    if name not in METHODS:
        return optax.with_extra_args_support(base)
    link = METHODS[name](training)
    if name == "wsam":
        return arsam_jax.decouple(link, base, training.schedule)
    return optax.chain(link, base)


def _arsam(training: Training, reuse_steps: int) -> optax.GradientTransformation:
    options = training.options
    return arsam_jax.arsam(
        training.rho(),
        options.alpha,
        segment_length=options.segment_length,
        reuse_steps=reuse_steps,
        seed=training.seed,
    )
