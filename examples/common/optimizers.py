"""Base optimizers and schedules by name: what comes after a sharpness-aware link in a chain."""

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
      name: sgd; adamw (arXiv 1711.05101); lion (arXiv 2302.06675); or muon, which takes matrices
        and convolutions (as matrices of their output channels) by Muon, scaled to the size of
        AdamW's updates so that AdamW's learning rates suit it (arXiv 2502.16982), and all else,
        arrays of three axes too, by AdamW. But for ``momentum`` all is as optax has it.
      weight_decay: λ >= 0. Coupled for sgd: λ w is added to the gradient. Decoupled for the others:
        each step takes learning rate · λ w off, past their moments.
      momentum: in [0, 1), of sgd alone; the others have moments of their own.

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
    - step: from each of ``decay_at`` on, in shares of all steps, a tenth of what it was;
    - wsd: as it is, and linear to 0 in the last ``decay_share`` of all steps (warm-up, stable,
      decay: arXiv 2404.06395; the linear fifth: arXiv 2405.18392);
    - poly: times (1 - t)^0.9, t the share of the steps after the warm-up (arXiv 1606.00915);
    - constant: as it is.

    Raises:
      ValueError: for another name, or where the warm-up leaves no room for the rest.
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
    """Learning rates of their own for parts of a network: the last link of a chain.

    It multiplies what the optimizer adds to a parameter, so that weight decay and momentum are
    those of a parameter whose learning rate is that much larger or smaller::

        tx = optax.chain(tx, multiply_rates(lambda path: 0.1 if path[0] == "backbone" else 1.0))

    Args:
      multiplier: from the path of a parameter, the names of its modules and its own.
    """

    def multiply(path, update):
        return update * multiplier(tuple(key.key for key in path))

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(multiply, updates))


def pull_back() -> optax.GradientTransformationExtraArgs:
    """Gradients of what a method sees, as gradients of the parameters: between it and the base.

    For a train step whose ``grads`` and ``grad_fn`` are those of a function q of the parameters,
    in their tree, such as the quantized weights. Its extra argument ``pull_back`` maps them by the
    chain rule, as ``jax.vjp(q, params)[1]`` does; without it they pass as they are.
    """

    def update_fn(updates, state, params=None, *, pull_back=None, **extra_args):
        del params, extra_args
        return (updates if pull_back is None else pull_back(updates)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update_fn)


def _matrices(params: Any) -> Any:
    """Which axes of a parameter are a matrix's inputs and outputs; None if it is none."""
    numbers = {2: optax.contrib.MuonDimensionNumbers(0, 1)}  # linear: inputs, outputs
    numbers[4] = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)  # convolution: HWIO
    return jax.tree.map(lambda x: numbers.get(x.ndim), params)
