"""Masks for sparse SAM: ascents that keep a share of the perturbation.

Put a mask after ``normalize()``, so that ε is masked after the division by the whole ‖g‖. A mask is
refreshed at the first sampled step that is ``refresh_every`` or more steps after the last refresh,
before it is applied. A ``lax.cond`` makes the refresh free on all other steps; under ``vmap`` it
runs on the steps on which any element needs it. If gradients or scores are not finite, the mask
stays as it is and the refresh is repeated on the next sampled step. The density is exact at every
refresh.

The authors call these masks explicit: they make ε sparse and do not save computation. Their
implicit form masks the weights in the first backward pass instead. It is not offered here.

References:
  Mi et al., Make Sharpness-Aware Minimization Stronger: A Sparsified Perturbation Approach
  (arXiv 2210.05177), and Systematic Investigation of Sparse Perturbed Sharpness-Aware Minimization
  Optimizer (DOI 10.1109/TPAMI.2025.3581310), with its official code.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from arsam_jax import _check, _devices, _random, _tree
from arsam_jax._examples import example_loss

Pattern = Literal["unstructured", "structured"] | tuple[int, int] | tuple[int, int, int]
"""Which weights are masked together.

"unstructured" masks each weight separately, "structured" masks whole leaves. (N, M, axis) keeps N
of every M consecutive weights along an axis; (N, M) means axis −2, the input axis of Flax's
kernels, (in, out) and (height, width, in, out), along which hardware with 2:4 sparsity has its
groups. For the product with the transposed kernel, as in a backward pass, it is −1.
"""


class SparseMaskState(NamedTuple):
    """State of a mask.

    Attributes:
      mask: bools shaped like the parameters, or one bool scalar per leaf if structured.
      due: int32 scalar, the step from which on the mask is to be refreshed.
      key: uint32 (2,), of random draws.
    """

    mask: Any
    due: jax.Array
    key: jax.Array


def fisher_mask(
    sparsity: float,
    *,
    pattern: Pattern = "unstructured",
    num_examples: int | None = None,
    refresh_every: int = 1000,
) -> optax.GradientTransformationExtraArgs:
    """SSAM-F: keeps the weights with the largest diagonal Fisher information.

    The Fisher information of a weight is the mean of its squared per-example gradients over the
    examples of ``fisher_batch``, an extra argument of the update::

        tx.update(grads, state, params, grad_fn=grad_fn, example_loss_fn=example_loss_fn,
                  batch=batch, fisher_batch=fisher_batch)  # and axis_name in pmap, shard_map

    ``fisher_batch`` is structured like ``batch`` and has any number of examples. The authors draw
    1,024 examples of the training set for each refresh. With ``axis_name`` each device passes its
    part. Only a refresh reads it, so draw it outside the compiled step and leave it on the device
    in between. Without it the examples of the mini-batch are used, which are few. Needs
    ``example_loss_fn``, and ``batch`` or ``fisher_batch``.

    A refresh with N examples costs N / B gradients of a mini-batch of size B. It takes the
    gradients one by one, which is slower than a batch, and keeps only their running sum. Batch
    normalization in ``example_loss_fn`` then sees one example at a time. With batch statistics the
    normalized output of a dense layer is constant, and the scores of the layers before it are
    meaningless, so use running statistics there.

    Args:
      sparsity: the share of weights without perturbation, in [0, 1).
      pattern: "unstructured" keeps the largest scores of all weights. "structured" keeps whole
        leaves, by mean score, until the budget is reached. (N, M, axis) keeps the N largest of M
        consecutive weights along the axis of a leaf with two or more axes, whatever ``sparsity``
        is, and all weights that do not fill a group and of all other leaves. (N, M) is (N, M, −2).
      num_examples: how many of the given examples to use, the first ones; None uses all.
      refresh_every: T_m >= 1, steps between refreshes; the first sampled step is one.
    """
    if num_examples is not None:
        _check.check_static("num_examples", num_examples)
        _check.check_integer("num_examples", num_examples, low=1)

    def refresh(
        mask,
        key,
        grads,
        params,
        step,
        *,
        example_loss_fn=None,
        batch=None,
        fisher_batch=None,
        axis_name=None,
        **extra_args,
    ):
        del mask, key, grads, step, extra_args
        name = "batch" if fisher_batch is None else "fisher_batch"
        batch = batch if fisher_batch is None else fisher_batch
        loss_fn, size = example_loss(example_loss_fn, batch, axis_name, name)
        count = size if num_examples is None else num_examples
        if count > size:
            raise ValueError(
                f"num_examples must be at most {size}, the examples of {name}, got {num_examples}."
            )
        examples = jax.tree.map(lambda x: x[:count, None], _devices.replicated(batch))

        def add_square(total, example):
            grads = _tree.widen(jax.grad(lambda p: loss_fn(p, example).mean())(params))
            squares = jax.tree.map(lambda g: jnp.real(g * jnp.conj(g)), grads)
            return jax.tree.map(jnp.add, total, squares), None

        params = _devices.local_to(axis_name, params)
        zeros = jax.tree.map(lambda p: jnp.zeros_like(jnp.real(p)), params)
        scores, _ = jax.lax.scan(add_square, zeros, examples)
        scores = _devices.mean_over(axis_name, scores)
        return keep_largest(scores, sparsity, pattern), _tree.is_finite(scores)

    def first_mask(params, key):
        del key
        scores = jax.tree.map(lambda p: jnp.ones_like(jnp.real(p)), params)
        return keep_largest(scores, sparsity, pattern)

    return _sparse_mask(sparsity, pattern, refresh_every, 0, first_mask, refresh)


def dynamic_mask(
    sparsity: float,
    total_steps: int,
    *,
    drop_rate: float = 0.5,
    drop_by: Literal["weight", "gradient", "random"] = "gradient",
    grow_by: Literal["gradient", "random"] = "random",
    refresh_every: int = 1000,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""SSAM-D: a mask of dynamic sparse training.

    The first mask is random. A refresh drops the round(f (1 + cos(π t / T)) / 2 · live) live
    weights with the smallest scores, and grows as many of the dead weights, those with the largest
    scores, so that the density never changes (at most as many as are dead). g is the gradient of
    the mini-batch, w the weights before the perturbation. A refresh costs no gradient.

    Args:
      sparsity: the share of weights without perturbation, in [0, 1).
      total_steps: T >= 1, after which nothing is dropped any more.
      drop_rate: f in [0, 1].
      drop_by: the score of live weights: "weight" \|w\|, "gradient" \|g\|, or "random".
      grow_by: the score of dead weights: "gradient" \|g\|, or "random".
      refresh_every: T_m >= 1, steps between refreshes; the first is after T_m steps.
      seed: of the first mask and of random scores.
    """
    _check.check_integer("total_steps", total_steps, low=1)
    _check.check_number("drop_rate", drop_rate, low=0, high=1)
    _check.check_choice("drop_by", drop_by, ("weight", "gradient", "random"))
    _check.check_choice("grow_by", grow_by, ("gradient", "random"))

    def refresh(mask, key, grads, params, step, **extra_args):
        del extra_args
        mask = _devices.automatic(rewire, mask, key, grads, params, step, like=mask)
        return mask, jnp.ones([], bool)

    def rewire(mask, key, grads, params, step):
        live = _ravel(mask, jnp.bool_)
        drop_key, grow_key = jax.random.split(_random.step_key(key, step))

        def scores(score, key):
            if score == "random":
                return jax.random.uniform(key, live.shape, jnp.float32)
            return _ravel_scores(jax.tree.map(jnp.abs, params if score == "weight" else grads))

        progress = jnp.clip(step.astype(jnp.float32) / jnp.float32(total_steps), 0, 1)
        rate = jnp.asarray(drop_rate, jnp.float32) * (1 + jnp.cos(jnp.pi * progress)) / 2
        num_live = jnp.sum(live, dtype=jnp.int32)
        num_dropped = jnp.round(rate * num_live.astype(jnp.float32)).astype(jnp.int32)
        num_dropped = jnp.minimum(num_dropped, live.size - num_live)
        # Rank 0 is the live weight with the smallest score, and the dead one with the largest.
        drop_rank = _rank(jnp.where(live, -scores(drop_by, drop_key), -jnp.inf))
        grow_rank = _rank(jnp.where(live, -jnp.inf, scores(grow_by, grow_key)))
        kept = live & (drop_rank >= num_dropped)
        grown = ~live & (grow_rank < num_dropped)
        return _unravel(kept | grown, mask)

    def first_mask(params, key):
        size = sum(x.size for x in jax.tree.leaves(params))
        scores = jax.random.uniform(_random.step_key(key, jnp.int32(-1)), [size], jnp.float32)
        kept = _rank(scores) < _num_live(size, sparsity)
        return _devices.automatic(functools.partial(_unravel, like=params), kept, like=params)

    return _sparse_mask(
        sparsity, "unstructured", refresh_every, seed, first_mask, refresh, first_due=refresh_every
    )


def keep_largest(scores: Any, sparsity: float, pattern: Pattern = "unstructured") -> Any:
    """Returns the mask of the largest scores: bools like ``scores``, one per leaf if structured.

    Ties go to the earlier weight, so that the number of kept weights is exact.
    """
    _check_pattern(pattern)
    if pattern == "unstructured":

        def keep(scores):
            flat = _ravel_scores(scores)
            return _unravel(_rank(flat) < _num_live(flat.size, sparsity), scores)

        return _devices.automatic(keep, scores, like=scores)
    if pattern == "structured":
        leaves, treedef = jax.tree.flatten(scores)
        if not leaves:
            return scores
        sizes = np.array([x.size for x in leaves], np.int32)
        dtype = _score_dtype(scores)
        means = jnp.stack([jnp.sum(x.astype(dtype)) / max(x.size, 1) for x in leaves])
        order = jnp.argsort(-means, stable=True)
        ordered = jnp.asarray(sizes)[order]
        before = jnp.cumsum(ordered, dtype=jnp.int32) - ordered
        kept = jnp.zeros(len(leaves), bool).at[order].set(before < _num_live(sizes.sum(), sparsity))
        return jax.tree.unflatten(treedef, list(kept))
    n, m, axis = (*pattern, -2)[:3]

    def keep_n_of_m(x):
        if x.ndim < 2:
            return jnp.ones(x.shape, bool)
        _check.check_integer("pattern's axis", axis, low=-x.ndim, high=x.ndim - 1)
        rows = jnp.moveaxis(x, axis, -1)
        *others, length = rows.shape
        whole = length // m * m  # Weights that do not fill a group are kept.
        groups = rows[..., :whole].reshape(*others, length // m, m)
        ranks = jnp.argsort(jnp.argsort(-groups, axis=-1, stable=True), axis=-1)
        kept = (ranks < n).reshape(*others, whole)
        rest = jnp.ones((*others, length - whole), bool)
        return jnp.moveaxis(jnp.concatenate([kept, rest], -1), -1, axis)

    return jax.tree.map(lambda x: _devices.automatic(keep_n_of_m, x, like=x), scores)


def density(mask: Any, params: Any) -> jax.Array:
    """Returns the share of weights that a mask keeps, a float32 scalar."""
    live = jax.tree.map(lambda keep, p: jnp.sum(jnp.broadcast_to(keep, p.shape)), mask, params)
    size = sum(p.size for p in jax.tree.leaves(params))
    return jnp.asarray(sum(jax.tree.leaves(live)), jnp.float32) / max(size, 1)


def _sparse_mask(
    sparsity: float,
    pattern: Pattern,
    refresh_every: int,
    seed: int,
    first_mask: Callable,
    refresh: Callable,
    first_due: int = 0,
) -> optax.GradientTransformationExtraArgs:
    _check.check_static("sparsity", sparsity, static_args=("sparsity", "mask"))
    _check.check_number("sparsity", sparsity, low=0, below=1)
    _check.check_integer("refresh_every", refresh_every, low=1)
    _check.check_seed(seed)
    _check_pattern(pattern)

    def init_fn(params):
        key = _random.make_key(seed, "sparse.dynamic_mask")
        due = jnp.asarray(first_due, jnp.int32)
        return SparseMaskState(first_mask(params, key), due, key)

    def update_fn(updates, state, params=None, *, step, **extra_args):
        is_due = step >= state.due
        mask, is_usable = jax.lax.cond(
            _tree.any_in_batch(is_due),
            lambda: refresh(state.mask, state.key, updates, params, step, **extra_args),
            lambda: (state.mask, jnp.zeros([], bool)),
        )
        is_refreshed = is_due & is_usable
        mask = _tree.where(is_refreshed, mask, state.mask)
        longest = jnp.iinfo(jnp.int32).max - step  # The step saturates, so its sum must, too.
        next_due = step + jnp.minimum(jnp.asarray(refresh_every, jnp.int32), longest)
        due = jnp.where(is_refreshed, next_due, state.due)
        masked = jax.tree.map(lambda keep, x: jnp.where(keep, x, 0), mask, updates)
        return masked, SparseMaskState(mask, due, state.key)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # pyright: ignore


def _check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, tuple):
        _check.check_choice("pattern", pattern, ("unstructured", "structured"))
    elif len(pattern) not in (2, 3):
        raise ValueError(
            f"pattern must be a name, or integers (N, M) or (N, M, axis), got {pattern!r}."
        )
    else:
        _check.check_integer("pattern's N", pattern[0], low=1)
        _check.check_integer("pattern's M", pattern[1], low=pattern[0])
        if not all(type(axis) is int for axis in pattern[2:]):
            raise TypeError(f"pattern's axis must be an integer, got {pattern[2]!r}.")


def _num_live(size: int, sparsity: float) -> int:
    without_rounding = int(size) * sparsity * (1 - 1e-12)  # 100 * 0.07 is slightly above 7.
    return int(size) - math.ceil(without_rounding)


def _rank(scores: jax.Array) -> jax.Array:
    """The place of each score in descending order, 0 for the largest; ties in their order."""
    order = jnp.argsort(-scores, stable=True)
    return (
        jnp.zeros(scores.shape, jnp.int32).at[order].set(jnp.arange(scores.size, dtype=jnp.int32))
    )


def _ravel_scores(tree: Any) -> jax.Array:
    return _ravel(tree, _score_dtype(tree))


def _score_dtype(tree: Any) -> Any:
    """The one dtype in which the scores of leaves of several are compared."""
    is_double = any(x.dtype == jnp.float64 for x in jax.tree.leaves(tree))
    return jnp.float64 if is_double else jnp.float32


def _ravel(tree: Any, dtype: Any) -> jax.Array:
    leaves = [jnp.ravel(x).astype(dtype) for x in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros([0], dtype)


def _unravel(flat: jax.Array, like: Any) -> Any:
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([x.size for x in leaves])
    parts = [flat[end - x.size : end].reshape(x.shape) for end, x in zip(ends, leaves, strict=True)]
    return jax.tree.unflatten(treedef, parts)
