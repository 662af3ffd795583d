"""The methods that ``python -m examples.classification`` can compare: one line each."""

from collections.abc import Callable

import optax

import arsam_jax
from examples.classification.config import Config
from examples.common import optimizers
from examples.common.errors import ConfigError

NUM_MICROBATCHES = 2
SHARE_OF_EXAMPLES = 0.5  # of K-SAM and AUSAM
MOMENTUM_SAM_RADIUS = 5
"""In units of --rho: a momentum is no gradient of the batch. 15 in its authors' runs, which is too
far on digits."""

# The first link of each method's chain, from the settings, the number of steps and the seed.
# --rho, --alpha, --segment-length, --reuse-steps and --share are settings; all else is as in the
# papers, but for MOMENTUM_SAM_RADIUS, GAM's second radius, the one of what is SAM in it, and the
# Fisher masks of sparse SAM, which look at the mini-batch.
METHODS: dict[str, Callable[[Config, int, int], optax.GradientTransformation]] = {
    "sgd": lambda config, steps, seed: optax.identity(),
    "sam": lambda config, steps, seed: arsam_jax.sam(config.rho),
    "arsam": lambda config, steps, seed: _arsam(config, seed, config.reuse_steps),
    "arsam_a": lambda config, steps, seed: _arsam(config, seed, reuse_steps=0),
    "budgeted_sam": lambda config, steps, seed: arsam_jax.budgeted_sam(
        config.rho, share=config.share
    ),
    "sam_every_k": lambda config, steps, seed: arsam_jax.sam_every_k(config.rho, k=5),
    "looksam": lambda config, steps, seed: arsam_jax.looksam(config.rho),
    "ae_sam": lambda config, steps, seed: arsam_jax.ae_sam(config.rho, steps),
    "final_phase_sam": lambda config, steps, seed: arsam_jax.final_phase_sam(
        config.rho, steps, share=0.25
    ),
    "esam": lambda config, steps, seed: arsam_jax.esam(config.rho, seed=seed),
    "sparse_sam": lambda config, steps, seed: arsam_jax.sparse_sam(
        config.rho,
        mask=lambda sparsity: arsam_jax.sparse.fisher_mask(
            sparsity, refresh_every=_five_epochs(config, steps)
        ),
    ),
    "sparse_sam_dynamic": lambda config, steps, seed: arsam_jax.sparse_sam(
        config.rho,
        mask=lambda sparsity: arsam_jax.sparse.dynamic_mask(
            sparsity, steps, refresh_every=_five_epochs(config, steps), seed=seed
        ),
    ),
    "gradient_norm_penalty": lambda config, steps, seed: arsam_jax.gradient_norm_penalty(
        config.rho, strength=0.7
    ),
    "asam": lambda config, steps, seed: arsam_jax.asam(config.rho),
    "gsam": lambda config, steps, seed: arsam_jax.gsam(config.rho, alpha=0.2),
    "usam": lambda config, steps, seed: arsam_jax.usam(config.rho),
    "m_sam": lambda config, steps, seed: arsam_jax.m_sam(config.rho, NUM_MICROBATCHES),
    "multi_step_sam": lambda config, steps, seed: arsam_jax.multi_step_sam(config.rho, num_steps=2),
    "momentum_sam": lambda config, steps, seed: arsam_jax.momentum_sam(
        MOMENTUM_SAM_RADIUS * config.rho
    ),
    "friendly_sam": lambda config, steps, seed: arsam_jax.friendly_sam(config.rho),
    "gam": lambda config, steps, seed: arsam_jax.gam(config.rho, grad_rho=config.rho),
    "wsam": lambda config, steps, seed: arsam_jax.wsam(config.rho),  # decoupled: make_method
    "sampa": lambda config, steps, seed: arsam_jax.sampa(config.rho, make_schedule(config, steps)),
    "rw_sam": lambda config, steps, seed: arsam_jax.rw_sam(config.rho, seed=seed),
    "k_sam": lambda config, steps, seed: arsam_jax.k_sam(config.rho, SHARE_OF_EXAMPLES),
    "ausam": lambda config, steps, seed: _ausam(config, steps, seed),
    "saf": lambda config, steps, seed: optax.identity(),  # a term of the loss: trajectory.py
    "mesa": lambda config, steps, seed: optax.identity(),
}

_FACTS = arsam_jax.methods.METHODS

# Where a sampled step costs something else than one gradient more, so 2 / (1 + %SAM) says nothing.
OTHER_PRICES = {name for name, facts in _FACTS.items() if facts.gradients != 2} | {"saf", "mesa"}

# Which leave the clean gradient unread: to measure it would cost them its backward pass.
UNMEASURED = {name for name, facts in _FACTS.items() if not facts.reads_grads}

# Which look at the examples of a batch themselves, so that it cannot come in parts.
OF_THE_WHOLE_BATCH = {name for name, facts in _FACTS.items() if facts.is_local}


def _arsam(config: Config, seed: int, reuse_steps: int) -> optax.GradientTransformation:
    return arsam_jax.arsam(
        config.rho,
        config.alpha,
        segment_length=config.segment_length,
        reuse_steps=reuse_steps,
        seed=seed,
    )


def _ausam(config: Config, steps: int, seed: int) -> optax.GradientTransformation:
    steps_per_epoch = max(1, steps // config.epochs)
    return arsam_jax.ausam(
        config.rho,
        # At least the data set, of which an epoch leaves out less than a batch.
        num_examples=(steps_per_epoch + 1) * config.batch_size,
        steps_per_epoch=steps_per_epoch,
        share=SHARE_OF_EXAMPLES,
        seed=seed,
    )


def _five_epochs(config: Config, steps: int) -> int:
    """Between the masks of sparse SAM, as in its authors' code."""
    return max(1, 5 * steps // config.epochs)


def perturbation_size(name: str, config: Config) -> int | None:
    """m, the number of examples that share one perturbation; None where nothing is perturbed.

    It changes what a sharpness-aware method does, and does not depend on the number of devices:
    each of them averages over the whole batch before it perturbs.
    """
    if name in ("sgd", "saf", "mesa"):
        return None
    if name in ("k_sam", "ausam"):
        return max(1, round(SHARE_OF_EXAMPLES * config.batch_size))
    return config.batch_size // (NUM_MICROBATCHES if name == "m_sam" else 1)


def make_method(
    name: str, config: Config, total_steps: int, seed: int
) -> optax.GradientTransformation:
    """The whole optimizer: methods differ in the first link alone; WSAM's goes past the rest."""
    schedule = make_schedule(config, total_steps)
    link = METHODS[name](config, total_steps, seed)
    base = optimizers.make_optimizer(
        config.optimizer, schedule, weight_decay=config.weight_decay, momentum=config.momentum
    )
    if name == "wsam":
        return arsam_jax.decouple(link, base, schedule)
    return optax.chain(link, base)


def make_schedule(config: Config, total_steps: int) -> optax.Schedule:
    """The learning rate of each step.

    Raises:
      ConfigError: where the warm-up leaves no room for the rest.
    """
    warmup_steps = min(
        round(config.warmup_epochs * total_steps / config.epochs), max(0, total_steps - 1)
    )
    try:
        return optimizers.make_schedule(
            config.schedule, config.learning_rate, total_steps, warmup_steps=warmup_steps
        )
    except ValueError as error:
        raise ConfigError(f"--warmup-epochs {config.warmup_epochs:g}: {error}") from error
