"""The arguments with which a training program runs each method of ``arsam_jax.methods``."""

from typing import Any

import optax

import arsam_jax
from arsam_jax.methods import METHODS as LIBRARY

METHODS = {name: method for name, method in LIBRARY.items() if "direction" not in method.needs}
"""The methods that a program can compare: all but those that need a direction from the user."""

SHARE_OF_EXAMPLES = 0.5  # of K-SAM and AUSAM
MOMENTUM_SAM_RADIUS = 5
"""The radius of momentum_sam in units of --rho, since a momentum is longer than a gradient. Its
authors use 15, which fails to train on digits."""


def make_method(
    name: str,
    options: Any,
    base: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    steps_per_epoch: int,
    num_examples: int,
    seed: int,
) -> optax.GradientTransformation:
    """The whole optimizer: the method, followed by the base optimizer.

    The arguments of a method are those of its paper unless the options set them.

    Args:
      name: one of ``METHODS``. Any other name gives the base optimizer alone.
      options: the settings of the methods, see ``comparison.Options``.
      base: the base optimizer with the learning rate ``schedule``.
      num_examples: at least the number of training examples.
    """
    if name not in METHODS:
        return optax.with_extra_args_support(base)
    factor = MOMENTUM_SAM_RADIUS if name == "momentum_sam" else 1
    rho: Any = factor * options.rho
    if options.rho_of_weights:
        rho = arsam_jax.radius.proportional_to_params(factor * options.rho_of_weights)
    total_steps = options.epochs * steps_per_epoch
    arguments: dict[str, Any] = {}
    match name:
        case "arsam":
            arguments = {
                "alpha": options.alpha,
                "segment_length": options.segment_length,
                "reuse_steps": options.reuse_steps,
                "seed": seed,
            }
        case "budgeted_sam":
            arguments = {"share": options.share, "num_microbatches": options.microbatches or None}
        case "sam_every_k":
            arguments = {"k": 5}
        case "ae_sam":
            arguments = {"total_steps": total_steps}
        case "final_phase_sam":
            arguments = {"total_steps": total_steps, "share": 0.25}
        case "sparse_sam":
            # Its authors compute the mask every five epochs, over the whole training set.
            steps = max(1, 5 * steps_per_epoch)
            arguments = {
                "mask": lambda sparsity: arsam_jax.sparse.fisher_mask(sparsity, refresh_every=steps)
            }
        case "masked_sam":
            arguments = {"mask": arsam_jax.masks.without_biases()}
        case "gradient_norm_penalty":
            arguments = {"strength": 0.7}
        case "gsam":
            arguments = {"alpha": 0.2}
        case "m_sam":
            arguments = {"num_microbatches": options.microbatches or 2}
        case "multi_step_sam":
            arguments = {"num_steps": 2}
        case "gam":
            arguments = {"grad_rho": options.rho}
        case "sampa":
            arguments = {"learning_rate": schedule}
        case "k_sam":
            arguments = {"share": SHARE_OF_EXAMPLES}
        case "ausam":
            arguments = {
                "num_examples": num_examples,
                "steps_per_epoch": max(1, steps_per_epoch),
                "share": SHARE_OF_EXAMPLES,
                "seed": seed,
            }
        case "esam" | "rw_sam":
            arguments = {"seed": seed}
    method = METHODS[name].make(rho, **arguments)
    if name == "wsam":  # its decoupled term is added after the base optimizer
        return arsam_jax.decouple(method, base, schedule)
    return optax.chain(method, base)
