"""Base optimizers and schedules by name. They come after a sharpness-aware method in a chain."""

from collections.abc import Callable
from typing import Any

import jax
import optax

OPTIMIZERS = ("sgd", "adamw", "lion", "muon")
SCHEDULES = ("cosine", "step", "wsd", "poly", "constant")
_POLY = 0.9


def make_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
) -> optax.GradientTransformation:
    """A base optimizer of optax, for all parameters alike::

        schedule = make_schedule("cosine", 0.1, total_steps, warmup_steps=500)
        tx = optax.chain(arsam_jax.arsam(0.1, 0.4), make_optimizer("sgd", schedule))

    Args:
      name: sgd; adamw (arXiv 1711.05101); lion (arXiv 2302.06675); or muon. Muon updates matrices
        and convolutions (as matrices of their output channels). Its updates are scaled to the size
        of AdamW's, so that AdamW's learning rates suit it (arXiv 2502.16982). AdamW updates all
        other parameters. All hyperparameters except ``momentum`` are Optax's defaults.
      weight_decay: λ >= 0. For sgd it is coupled: λ w is added to the gradient. For the others it
        is decoupled: each step subtracts learning rate · λ w.
      momentum: in [0, 1), of sgd only. The others have moments of their own.

    Raises:
      ValueError: for another name.
    """
    match name:
        case "sgd":
            return optax.chain(
                optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum)
            )
        case "adamw":
            return optax.adamw(learning_rate, weight_decay=weight_decay)
        case "lion":
            return optax.lion(learning_rate, weight_decay=weight_decay)
        case "muon":
            return optax.contrib.muon(
                learning_rate,
                weight_decay=weight_decay,
                adam_weight_decay=weight_decay,
                muon_weight_dimension_numbers=_matrices,
                consistent_rms=0.2,
            )
    raise ValueError(f"there is no optimizer {name!r}; there are {', '.join(OPTIMIZERS)}")


def make_schedule(
    name: str,
    peak: float,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    decay_share: float = 0.2,
    decay_at: tuple[float, ...] = (1 / 2, 3 / 4),
) -> optax.Schedule:
    """A learning rate for each step: linear warm-up from 0 to ``peak``, and then

    - cosine: half a cosine down to 0 (arXiv 1608.03983);
    - step: divided by 10 at each of ``decay_at``, in fractions of all steps;
    - wsd: constant, then linear to 0 in the last ``decay_share`` of all steps (warm-up, stable,
      decay: arXiv 2404.06395; the linear fifth: arXiv 2405.18392);
    - poly: times (1 - t)^0.9, where t is the fraction of the steps after the warm-up that have
      passed (arXiv 1606.00915);
    - constant.

    Raises:
      ValueError: for another name, or if the warm-up leaves no room for the rest.
    """
    drops = [int(share * total_steps) for share in decay_at]
    decay_start = total_steps - round(decay_share * total_steps)
    latest = {"step": min(drops, default=total_steps), "wsd": decay_start}.get(name, total_steps)
    if not 0 <= warmup_steps <= latest:
        raise ValueError(
            f"the warm-up of {name} must be 0 to {latest} of the {total_steps} steps, not"
            f" {warmup_steps}"
        )
    warm_up = optax.linear_schedule(0, peak, warmup_steps)
    match name:
        case "cosine":
            return optax.warmup_cosine_decay_schedule(0, peak, warmup_steps, total_steps)
        case "step":
            rates = [peak / 10**i for i in range(len(drops) + 1)]
            parts = [warm_up, *map(optax.constant_schedule, rates)]
            return optax.join_schedules(parts, [warmup_steps, *drops])
        case "wsd":
            decay = optax.linear_schedule(peak, 0, total_steps - decay_start)
            parts = [warm_up, optax.constant_schedule(peak), decay]
            return optax.join_schedules(parts, [warmup_steps, decay_start])
        case "poly":
            decay = optax.polynomial_schedule(peak, 0, _POLY, total_steps - warmup_steps)
            return optax.join_schedules([warm_up, decay], [warmup_steps])
        case "constant":
            return optax.join_schedules([warm_up, optax.constant_schedule(peak)], [warmup_steps])
    raise ValueError(f"there is no schedule {name!r}; there are {', '.join(SCHEDULES)}")


def multiply_rates(multiplier: Callable[[tuple[str, ...]], float]) -> optax.GradientTransformation:
    """Separate learning rates for parts of a network: the last transformation of a chain.

    It multiplies the update of a parameter, so weight decay and momentum are those of a parameter
    with the multiplied learning rate::

        tx = optax.chain(tx, multiply_rates(lambda path: 0.1 if path[0] == "backbone" else 1.0))

    Args:
      multiplier: takes the path of a parameter, the names of its modules and its own name.
    """

    def multiply(path, update):
        return update * multiplier(tuple(key.key for key in path))

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(multiply, updates))


def pull_back() -> optax.GradientTransformationExtraArgs:
    """Converts the output of a method to gradients of the parameters, before the base optimizer.

    It is for a train step whose ``grads`` and ``grad_fn`` are gradients with respect to a function
    q of the parameters, such as the quantized weights. The extra argument ``pull_back`` maps them
    by the chain rule, as ``jax.vjp(q, params)[1]`` does. Without it they are not changed.
    """

    def update_fn(updates, state, params=None, *, pull_back=None, **extra_args):
        del params, extra_args
        return (updates if pull_back is None else pull_back(updates)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update_fn)


def _matrices(params: Any) -> Any:
    """The axes of a parameter that are the inputs and outputs of a matrix, or None."""
    numbers = {2: optax.contrib.MuonDimensionNumbers(0, 1)}  # linear: inputs, outputs
    numbers[4] = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)  # convolution: HWIO
    return jax.tree.map(lambda x: numbers.get(x.ndim), params)
