"""Base optimizers and schedules by name. They come after a sharpness-aware method in a chain."""

from collections.abc import Callable

import jax
import optax

OPTIMIZERS = ("sgd", "adamw")


def make_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
) -> optax.GradientTransformation:
    """A base optimizer of optax, for all parameters alike.

    Args:
      name: sgd; or adamw (arXiv 1711.05101), whose hyperparameters are Optax's defaults.
      weight_decay: λ >= 0. For sgd it is coupled: λ w is added to the gradient. For adamw it is
        decoupled: each step subtracts learning rate · λ w.
      momentum: in [0, 1), of sgd only.

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
    raise ValueError(f"there is no optimizer {name!r}")


def make_schedule(
    name: str,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    decay_at: tuple[float, ...] = (1 / 2, 3 / 4),
) -> optax.Schedule:
    """A learning rate for each step: linear warm-up from 0 to ``peak``, and then

    - cosine: half a cosine down to 0 (arXiv 1608.03983);
    - step: divided by 10 at each of ``decay_at``, in fractions of all steps;
    - poly: times (1 - t)^0.9, where t is the fraction of the steps after the warm-up that have
      passed (arXiv 1606.00915);
    - constant.

    Raises:
      ValueError: for another name.
    """
    rest = total_steps - warmup_steps
    match name:
        case "cosine":
            schedule = optax.cosine_decay_schedule(peak, rest)
        case "step":
            drops = [int(share * total_steps) - warmup_steps for share in decay_at]
            schedule = optax.piecewise_constant_schedule(peak, dict.fromkeys(drops, 0.1))
        case "poly":
            schedule = optax.polynomial_schedule(peak, 0, 0.9, rest)
        case "constant":
            schedule = optax.constant_schedule(peak)
        case _:
            raise ValueError(f"there is no schedule {name!r}")
    warm_up = optax.linear_schedule(0, peak, warmup_steps)
    return optax.join_schedules([warm_up, schedule], [warmup_steps])


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
