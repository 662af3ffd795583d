"""Probes that take one or both gradients of SAM on a part of the mini-batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from arsam_jax import _check, _devices, _random, _tree
from arsam_jax._examples import example_loss
from arsam_jax._repr import described
from arsam_jax.ascent import normalize
from arsam_jax.probe import Probe

_INDEX_CALL = """
    tx.update(grads, opt_state, params, grad_fn=grad_fn, example_loss_fn=example_loss_fn,
              batch=batch, example_index=index)  # int (batch,): where they are in the data set"""


@described
def largest_losses(
    share: float = 0.5,
    ascent: optax.GradientTransformation = normalize(),  # noqa: B008
) -> Probe:
    r"""K-SAM: both gradients are taken on the K examples with the largest losses.

    .. math::
        g_A = \nabla L_K\big(w + \rho\,\mathrm{ascent}(\nabla L_K(w))\big), \quad
        L_K = \frac1K \sum_{i \in \mathrm{top}_K\,\ell_j(w)} \ell_i,

    with K = max(1, round(share · B)). A forward pass of the batch finds the examples. Needs
    ``example_loss_fn`` and ``batch``. With ``axis_name`` each device selects from its own examples,
    and both gradients are averaged over the devices. Batch normalization in ``example_loss_fn``
    sees only the K examples when gradients are taken.

    Args:
      share: of the examples, in (0, 1], a Python float; 1 takes the whole batch, which is SAM.
      ascent: maps the gradient of the K examples to a direction.

    Returns:
      A probe that costs 2 share gradients and, for a share below 1, one forward pass. It does not
      read ``grads``.

    References:
      Ni et al., K-SAM: Sharpness-Aware Minimization at the Speed of SGD (arXiv 2210.12864).
    """
    _check.check_static("share", share)
    _check.check_number("share", share, above=0, high=1)
    ascent = _check.checked_ascent(ascent)

    def update_fn(
        grads, state, params, /, *, grad_fn, example_loss_fn=None, batch=None, **extra_args
    ):
        del grads, grad_fn
        loss_fn, size = example_loss(example_loss_fn, batch, extra_args.get("axis_name"))
        params = _tree.widen(params)
        count = _count(share, size)
        part = batch
        if count < size:
            losses = _devices.replicated(loss_fn(params, batch))
            part = _taken(batch, jax.lax.top_k(losses, count)[1])
        extra_args.pop("example_index", None)  # It belongs to the whole batch.
        extra_args["example_loss_fn"] = example_loss_fn
        return _climb(ascent, loss_fn, part, params, state, **extra_args)[:2]

    return Probe(ascent.init, update_fn, reads_grads=False, whole_batch=False)


@described
def largest_rises(
    gamma: float,
    ascent: optax.GradientTransformation = normalize(),  # noqa: B008
) -> Probe:
    r"""ESAM's sharpness-sensitive data selection: g_A on the examples whose loss rises most.

    With ε = ρ ascent(g), the perturbed gradient is that of the mean loss at w + ε over the
    max(1, round(γB)) examples with the largest ℓ_i(w + ε) − ℓ_i(w). Nothing of it is computed for
    the other examples. Needs ``example_loss_fn`` and ``batch``. Batch normalization in
    ``example_loss_fn`` then sees only the selected examples.

    Args:
      gamma: γ in (0, 1], a Python float; 1 selects all, which is ``perturb``.
      ascent: maps the gradient to a direction.

    Returns:
      A probe that costs γ of a gradient and two forward passes.

    References:
      Du et al., Efficient Sharpness-Aware Minimization (arXiv 2110.03141), section 3.2.
    """
    _check.check_static("gamma", gamma)
    _check.check_number("gamma", gamma, above=0, high=1)
    ascent = _check.checked_ascent(ascent)

    def update_fn(
        grads, state, params, /, *, rho, grad_fn, example_loss_fn=None, batch=None, **extra_args
    ):
        axis_name = extra_args.get("axis_name")
        loss_fn, size = example_loss(example_loss_fn, batch, axis_name)
        extra_args |= {"example_loss_fn": example_loss_fn, "batch": batch}
        params = _tree.widen(params)
        direction, state = ascent.update(
            grads, state, params, rho=rho, grad_fn=grad_fn, **extra_args
        )
        point = _tree.add(params, _tree.scale(rho, direction))
        if gamma == 1:
            return grad_fn(point), state
        rise = _devices.replicated(loss_fn(point, batch) - loss_fn(params, batch))
        _, chosen = jax.lax.top_k(rise, max(1, round(gamma * size)))
        selected = jax.tree.map(lambda x: _devices.replicated(jnp.asarray(x))[chosen], batch)
        perturbed_grads = _tree.gradient(lambda params: loss_fn(params, selected).mean())(
            _devices.local_to(axis_name, point)
        )
        return _devices.mean_over(axis_name, perturbed_grads), state

    return Probe(ascent.init, update_fn, whole_batch=gamma == 1)


class LossChangeState(NamedTuple):
    """State of ``largest_changes``: a memory of N = ``num_examples`` examples.

    Attributes:
      key: uint32 (2,), folded with the step for each draw.
      total: float32 (N,), the sum of ``|Δloss|`` of each example over the steps that drew it.
      times: int32 (N,), how often it was drawn.
      ascent: state of the ascent.
    """

    key: jax.Array
    total: jax.Array
    times: jax.Array
    ascent: Any


@described
def largest_changes(
    num_examples: int,
    steps_per_epoch: int,
    *,
    share: float = 0.5,
    rise_epochs: float = 30,
    min_weight: float = 0.1,
    max_weight: float = 0.5,
    ascent: optax.GradientTransformation = normalize(),  # noqa: B008
    seed: int = 0,
) -> Probe:
    r"""AUSAM: both gradients on examples whose loss the perturbation has changed most so far.

    max(1, round(share · B)) examples of the batch are drawn without replacement with the weights

    .. math::
        p_i \propto f_{min} + (f_t - f_{min})\, \frac{m_i - \min_j m_j}{\max_j m_j - \min_j m_j},
        \quad m_i = \mathrm{mean}\,|\ell_i(w + \varepsilon) - \ell_i(w)|.

    m_i is the mean over the earlier steps on which example i of the data set was drawn, and f_t
    rises from f_min to f_max over the first epochs. Equal m_i give equal weights. The first epoch
    takes whole batches, which fills the memory. An example that it leaves out counts with one
    ``|Δloss|`` of 1. A ``|Δloss|`` that is not finite is not stored.

    Needs ``example_loss_fn``, ``batch`` and ``example_index``, int (batch,): the positions of the
    examples in the data set, in [0, ``num_examples``). With ``axis_name`` each device draws from
    its own examples, both gradients are averaged over the devices, and every device keeps the
    memory of all. Batch normalization in ``example_loss_fn`` sees only the drawn examples.

    Args:
      num_examples: N >= 1, the size of the data set, a Python integer.
      steps_per_epoch: >= 1.
      share: of the examples, in (0, 1], a Python float; 1 takes the whole batch, which is SAM.
      rise_epochs: > 0, over which f_t rises.
      min_weight: f_min > 0.
      max_weight: f_max >= f_min.
      ascent: maps the gradient of the drawn examples to a direction.
      seed: of the draws.

    Returns:
      A probe that costs 2 share gradients (2 in the first epoch), does not read ``grads``, and
      keeps two numbers for each example of the data set.

    References:
      AUSAM (arXiv 2406.08001).
    """
    _check.check_static("num_examples", num_examples)
    _check.check_integer("num_examples", num_examples, low=1)
    num_examples = int(num_examples)  # It may be a NumPy integer.
    _check.check_integer("steps_per_epoch", steps_per_epoch, low=1)
    _check.check_static("share", share)
    _check.check_number("share", share, above=0, high=1)
    _check.check_number("rise_epochs", rise_epochs, above=0)
    _check.check_number("min_weight", min_weight, above=0)
    if not isinstance(min_weight, Tracer):
        _check.check_number("max_weight", max_weight, low=float(min_weight))
    _check.check_seed(seed)
    ascent = _check.checked_ascent(ascent)

    def init_fn(params):
        return LossChangeState(
            key=_random.make_key(seed, "selection.largest_changes"),
            total=jnp.ones([num_examples], jnp.float32),
            times=jnp.ones([num_examples], jnp.int32),
            ascent=ascent.init(params),
        )

    def draw(state, index, step, epoch, count, axis_name):
        mean = state.total[index] / state.times[index].astype(jnp.float32)
        low, high = (jnp.asarray(x, jnp.float32) for x in (min_weight, max_weight))
        progress = epoch.astype(jnp.float32) / jnp.asarray(rise_epochs, jnp.float32)
        scaled = _tree.safe_divide(mean - mean.min(), mean.max() - mean.min())
        weights = low + (high - low) * jnp.minimum(progress, 1) * scaled
        key = _devices.local_key(axis_name, _random.step_key(state.key, step))
        # The largest of log p + Gumbel noise are a draw without replacement.
        scores = jnp.log(weights) + jax.random.gumbel(key, weights.shape, jnp.float32)
        return jax.lax.top_k(scores, count)[1]

    def update_fn(
        grads,
        state,
        params,
        /,
        *,
        step,
        grad_fn,
        example_loss_fn=None,
        batch=None,
        example_index=None,
        **extra_args,
    ):
        del grads, grad_fn
        axis_name = extra_args.get("axis_name")
        loss_fn, size = example_loss(example_loss_fn, batch, axis_name)
        index = _devices.replicated(_checked_index(example_index, size, num_examples))
        count = _count(share, size)
        epoch = step // jnp.asarray(steps_per_epoch, jnp.int32)
        is_first = epoch < 1
        extra_args |= {"step": step, "example_loss_fn": example_loss_fn}

        def on(chosen, params):
            part = batch if chosen is None else _taken(batch, chosen)
            perturbed_grads, ascent_state, before, after = _climb(
                ascent, loss_fn, part, params, state.ascent, **extra_args
            )
            change = _devices.replicated(jnp.abs(after - before).astype(jnp.float32))
            if (
                chosen is not None
            ):  # One shape for both branches: NaN for the examples that were not drawn.
                change = jnp.full([size], jnp.nan, jnp.float32).at[chosen].set(change)
            return perturbed_grads, ascent_state, change

        def whole(params):
            return on(None, params)

        def drawn(params):
            return on(draw(state, index, step, epoch, count, axis_name), params)

        params = _tree.widen(params)
        if count == size:
            result = whole(params)
        elif isinstance(is_first, Tracer):
            result = jax.lax.cond(is_first, whole, drawn, params)
        else:
            result = (whole if is_first else drawn)(params)
        perturbed_grads, ascent_state, change = result

        index, change = _devices.gathered(axis_name, (index, change))
        rows = jnp.where(
            jnp.isfinite(change), index, int(num_examples)
        )  # The index past the end is dropped.
        kept = jnp.where(is_first, 0, 1)  # The first epoch replaces the initial ones.
        total = state.total.at[rows].multiply(kept.astype(jnp.float32), mode="drop")
        times = state.times.at[rows].multiply(kept.astype(jnp.int32), mode="drop")
        return perturbed_grads, LossChangeState(
            key=state.key,
            total=total.at[rows].add(change, mode="drop"),
            times=times.at[rows].add(1, mode="drop"),
            ascent=ascent_state,
        )

    return Probe(init_fn, update_fn, reads_grads=False, whole_batch=False)


def _count(share, size):
    return max(1, round(share * size))


def _taken(batch, chosen):
    return jax.tree.map(lambda x: _devices.replicated(jnp.asarray(x))[chosen], batch)


def _climb(ascent, loss_fn, part, params, state, *, rho, axis_name=None, **extra_args):
    """SAM on some examples: the gradient, the ascent's state, their losses before and after."""

    def evaluate(point):
        def mean_loss(params):
            losses = loss_fn(params, part)
            return losses.mean(), losses

        grads, losses = jax.grad(mean_loss, has_aux=True)(_devices.local_to(axis_name, point))
        return _devices.mean_over(axis_name, jax.tree.map(jnp.conj, grads)), losses

    grads, before = evaluate(params)
    direction, state = ascent.update(
        _tree.widen(grads),
        state,
        params,
        rho=rho,
        grad_fn=lambda params: evaluate(params)[0],
        batch=part,
        axis_name=axis_name,
        **extra_args,
    )
    perturbed_grads, after = evaluate(_tree.add(params, _tree.scale(rho, direction)))
    return perturbed_grads, state, before, after


def _checked_index(example_index: Any, size: int, num_examples: int) -> jax.Array:
    if example_index is None:
        raise _check.MissingArgumentError(
            "example_index",
            "This method remembers every example of the data set: its update needs example_index."
            f"\n{_INDEX_CALL}",
        )
    if not isinstance(example_index, jax.Array):
        example_index = np.asarray(example_index)
    dtype = example_index.dtype
    if jnp.shape(example_index) != (size,) or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"example_index must be integers of shape ({size},), one for each example of batch, got"
            f" {dtype} of shape {jnp.shape(example_index)}."
        )
    is_known = not isinstance(example_index, Tracer)
    if is_known and getattr(example_index, "is_fully_addressable", True):
        known = np.asarray(example_index)
        ends = int(known.min()), int(known.max())
        if ends[0] < 0 or ends[1] >= num_examples:
            raise ValueError(
                f"example_index must be in [0, {num_examples}), num_examples, got {ends[0]} to"
                f" {ends[1]}."
            )
    return jnp.asarray(example_index, jnp.int32)
