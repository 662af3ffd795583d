"""The arguments with which a training program runs each method of ``arsam_jax.methods``."""

from typing import Any, NamedTuple, Protocol

import optax

import arsam_jax
from arsam_jax.methods import METHODS as LIBRARY

METHODS = {name: method for name, method in LIBRARY.items() if "direction" not in method.needs}
"""The methods that a program can compare: all but those that need a direction from the user."""

SHARE_OF_EXAMPLES = 0.5  # of K-SAM and AUSAM
MOMENTUM_SAM_RADIUS = 5
"""The radius of momentum_sam in units of --rho, since a momentum is longer than a gradient. Its
authors use 15, which fails to train on digits."""


class Options(Protocol):
    """The settings that a program passes to its methods."""

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
    @property
    def microbatches(self) -> int: ...


class Training(NamedTuple):
    """The training run that a method is for.

    Attributes:
      options: the settings of the methods.
      total_steps: the length of the run.
      steps_per_epoch: the length of a pass over the examples.
      num_examples: at least the number of training examples.
      schedule: the learning rate of the base optimizer.
      seed: the seed of the random numbers of a method.
    """

    options: Options
    total_steps: int
    steps_per_epoch: int
    num_examples: int
    schedule: optax.Schedule
    seed: int

    def rho(self, factor: float = 1) -> arsam_jax.radius.RadiusLike:
        """The radius times a factor."""
        if self.options.rho_of_weights:
            return arsam_jax.radius.proportional_to_params(factor * self.options.rho_of_weights)
        return factor * self.options.rho


def make_method(
    name: str, training: Training, base: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The whole optimizer: the method, followed by the base optimizer.

    Args:
      name: one of ``METHODS``. Any other name gives the base optimizer alone.
      base: the base optimizer with the learning rate ``training.schedule``.
    """
    if name not in METHODS:
        return optax.with_extra_args_support(base)
    factor = MOMENTUM_SAM_RADIUS if name == "momentum_sam" else 1
    method = METHODS[name].make(training.rho(factor), **_arguments(name, training))
    if name == "wsam":  # its decoupled term is added after the base optimizer
        return arsam_jax.decouple(method, base, training.schedule)
    return optax.chain(method, base)


def _arguments(name: str, training: Training) -> dict[str, Any]:
    """The arguments besides ``rho``, as in the papers unless the options set them."""
    options, seed = training.options, training.seed
    match name:
        case "arsam":
            return {
                "alpha": options.alpha,
                "segment_length": options.segment_length,
                "reuse_steps": options.reuse_steps,
                "seed": seed,
            }
        case "budgeted_sam":
            return {"share": options.share, "num_microbatches": options.microbatches or None}
        case "sam_every_k":
            return {"k": 5}
        case "ae_sam":
            return {"total_steps": training.total_steps}
        case "final_phase_sam":
            return {"total_steps": training.total_steps, "share": 0.25}
        case "sparse_sam":
            # Its authors compute the mask every five epochs, over the whole training set.
            steps = max(1, 5 * training.steps_per_epoch)
            return {
                "mask": lambda sparsity: arsam_jax.sparse.fisher_mask(sparsity, refresh_every=steps)
            }
        case "masked_sam":
            return {"mask": arsam_jax.masks.without_biases()}
        case "gradient_norm_penalty":
            return {"strength": 0.7}
        case "gsam":
            return {"alpha": 0.2}
        case "m_sam":
            return {"num_microbatches": options.microbatches or 2}
        case "multi_step_sam":
            return {"num_steps": 2}
        case "gam":
            return {"grad_rho": options.rho}
        case "sampa":
            return {"learning_rate": training.schedule}
        case "k_sam":
            return {"share": SHARE_OF_EXAMPLES}
        case "ausam":
            return {
                "num_examples": training.num_examples,
                "steps_per_epoch": max(1, training.steps_per_epoch),
                "share": SHARE_OF_EXAMPLES,
                "seed": seed,
            }
        case "esam" | "rw_sam":
            return {"seed": seed}
    return {}
