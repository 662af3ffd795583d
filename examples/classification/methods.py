"""The methods that ``python -m examples.classification`` can compare."""

import optax

import arsam_jax
from arsam_jax.methods import METHODS as _FACTS
from examples.classification.config import Config
from examples.common import methods, optimizers
from examples.common.errors import ConfigError
from examples.common.methods import NUM_MICROBATCHES, SHARE_OF_EXAMPLES

METHODS = ("sgd", *methods.METHODS, "budgeted_m_sam", "saf", "mesa")
"""sgd is the base optimizer alone; SAF and MESA are terms of the loss, see ``trajectory.py``."""

# Which take the gradients of micro-batches, that a step hands them: ``in_microbatches.py``.
MICROBATCHED = ("budgeted_m_sam",)

# Where a sampled step costs something else than one gradient more, so 2 / (1 + %SAM) says nothing.
OTHER_PRICES = {name for name, facts in _FACTS.items() if facts.gradients != 2} | {"saf", "mesa"}

# Which leave the clean gradient unread: to measure it would cost them its backward pass.
UNMEASURED = {name for name, facts in _FACTS.items() if not facts.reads_grads}

# Which look at the examples of a batch themselves, so that it cannot come in parts.
OF_THE_WHOLE_BATCH = {name for name, facts in _FACTS.items() if facts.is_local} | {*MICROBATCHED}


def gradients(name: str) -> float:
    """About what a sampled step costs, in gradients of the mini-batch."""
    if name in MICROBATCHED:
        return 2.0
    return 4 / 3 if name == "mesa" else methods.gradients(name)


def step_cost(name: str, num_seeds: int, config: Config) -> float:
    """About what a step of several seeds costs; under vmap every step is a sampled one."""
    if num_seeds > 1 or name == "mesa":
        return num_seeds * gradients(name)
    if name in MICROBATCHED:
        return 1 + config.share * (gradients(name) - 1)
    return methods.step_cost(name, config)


def perturbation_size(name: str, config: Config) -> int | None:
    """m, the number of examples that share one perturbation; None where nothing is perturbed.

    It changes what a sharpness-aware method does, and does not depend on the number of devices:
    each of them averages over the whole batch before it perturbs.
    """
    if name in ("sgd", "saf", "mesa"):
        return None
    if name in ("k_sam", "ausam"):
        return max(1, round(SHARE_OF_EXAMPLES * config.batch_size))
    return config.batch_size // (NUM_MICROBATCHES if name in ("m_sam", *MICROBATCHED) else 1)


def make_method(
    name: str, config: Config, total_steps: int, seed: int
) -> optax.GradientTransformation:
    """The whole optimizer, see ``examples.common.methods.make_method``."""
    schedule = make_schedule(config, total_steps)
    base = optimizers.make_optimizer(
        config.optimizer, schedule, weight_decay=config.weight_decay, momentum=config.momentum
    )
    steps_per_epoch = max(1, total_steps // config.epochs)
    training = methods.Training(
        options=config,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        # At least the data set, of which an epoch leaves out less than a batch.
        num_examples=(steps_per_epoch + 1) * config.batch_size,
        schedule=schedule,
        seed=seed,
    )
    if name == "budgeted_m_sam":
        link = arsam_jax.budgeted_sam(
            training.rho(), share=config.share, num_microbatches=NUM_MICROBATCHES
        )
        return optax.chain(link, base)
    return methods.make_method(name, training, base)


def make_schedule(config: Config, total_steps: int) -> optax.Schedule:
    """The learning rate of each step.

    Raises:
      ConfigError: where the warm-up leaves no room for the rest.
    """
    warmup_steps = min(round(config.warmup * total_steps / config.epochs), max(0, total_steps - 1))
    try:
        return optimizers.make_schedule(
            config.schedule, config.learning_rate, total_steps, warmup_steps=warmup_steps
        )
    except ValueError as error:
        raise ConfigError(f"--warmup-epochs {config.warmup:g}: {error}") from error
