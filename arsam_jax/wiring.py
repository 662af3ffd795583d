"""A check, before training, that the arguments of ``tx.update`` belong together."""

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from arsam_jax import _check, _tree, microbatches
from arsam_jax.state import SharpnessAwareState

_OTHER_LOSS = (
    "another mini-batch, dropout key or augmentation, BatchNorm in another mode, or another loss"
)
_EXPLAIN_TRACED = """\
check_wiring compares numbers, which do not exist inside jit, pmap, shard_map or vmap.
Under jit: run the train step once under jax.disable_jit(), or call check_wiring outside of it.
Under pmap, shard_map and vmap disable_jit does not help: map the gradient function alone, and call
check_wiring outside, on what it returns for one device. With pmap, and params of one device:

    grad = jax.pmap(lambda params, batch: jax.lax.pmean(jax.grad(loss_fn)(params, batch), "i"),
                    axis_name="i", in_axes=(None, 0))
    grad_fn = lambda params: jax.tree.map(lambda x: x[0], grad(params, batch))
    check_wiring(tx, grad_fn(params), params, grad_fn=grad_fn)"""
_BEHIND = "an optimizer, a clip or a mask is in front of it. Put that after it"
_LARGE = 1e6
_FREEZING = (
    "Frozen leaves come alive on sampled steps: differentiate the others alone and let grad_fn"
    " close over the frozen ones, or freeze behind the optimizer"
)


def check_wiring(tx: Any, grads: Any, params: Any, **extra_args: Any) -> None:
    """Compares the arguments of one ``tx.update`` with each other. Call it once, before training.

    A ``grad_fn`` that uses a different mini-batch, dropout key or scale than ``grads`` still
    trains, but gives worse results, and nothing reports it. This function evaluates
    ``grad_fn(params)`` twice, compares it with ``grads`` and with the gradients that reach the
    sharpness-aware transformation, and raises one error that lists all differences and what they
    look like. It returns nothing if everything is consistent.

    It finds:

    * different examples, dropout keys or augmentation; a ``grad_fn`` that draws anew or changes a
      model on each call;
    * a loss scale, sums instead of means, or weight decay on one side;
    * leaves that are frozen on one side only;
    * a transformation behind an optimizer, a clip or a mask, and ``optax.MultiSteps`` around it;
    * a ``value_fn`` of another loss, or an ``example_loss_fn`` of another loss for methods that
      take the perturbed gradient from it alone (``esam``, ``m_sam``); ``microbatch_grads`` of other
      examples;
    * arguments that ``tx`` lacks or cannot use.

    It cannot see what is wrong on both sides alike. Pass ``value_fn`` besides ``grad_fn`` to have
    both compared with the loss of the whole batch.

    Two compilations of one gradient differ slightly. Differences of up to 1 % of the norm are
    accepted, and of up to 10 % if something is computed in 16 bits.

    Costs two gradients, and one each for ``value_fn`` and ``example_loss_fn``, operation by
    operation unless they are jitted. It works outside ``jit``, ``pmap``, ``shard_map`` and
    ``vmap``, on what those return, and therefore without ``axis_name``. To call it in a jitted
    train step, before ``tx.update``, run that step once under ``jax.disable_jit()``. That does not
    work inside ``pmap``, ``shard_map`` and ``vmap``: map the gradient function alone, and call
    ``check_wiring`` on what it returns for one device. The error shows how.

    Args:
      tx: the whole chain, with exactly one sharpness-aware transformation.
      grads: the gradients for ``tx.update``.
      params: the parameters for ``tx.update``.
      **extra_args: its extra arguments: ``grad_fn`` or ``value_fn``, ``example_loss_fn``, ...

    Raises:
      TypeError: inside ``jit``.
      ValueError: if anything is wrong, listing all that was found.

    Example::

        arsam_jax.check_wiring(tx, grads, params, grad_fn=grad_fn)  # then tx.update with the same
    """
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((grads, params))):
        raise TypeError(_EXPLAIN_TRACED)
    state = tx.init(params)
    called, error = _try_update(tx, grads, state, params, extra_args)
    problems = [*_check_chain(state), *([error] if error else [])]
    if _check.differing_shapes(grads, params) is None:  # otherwise the update has reported it
        tolerance = _tolerance(grads, params, extra_args)
        problems += _check_arrival(tx, grads, state, params, extra_args, tolerance)
        problems += _check_gradients(grads, params, extra_args, called, error, tolerance)
    if problems:
        raise ValueError("check_wiring found:" + "".join(f"\n- {text}" for text in problems))


def _check_chain(state) -> Iterator[str]:
    def count(tree):
        return len(_find(tree, SharpnessAwareState))

    if count(state) != 1:
        yield f"tx must have exactly one sharpness-aware transformation, found {count(state)}."
    if any(count(x.inner_opt_state) for x in _find(state, optax.MultiStepsState)):
        yield (
            "optax.MultiSteps is around the transformation, which then gets the mean gradient of"
            " all micro-batches and the grad_fn of the last one. Accumulate inside grad_fn, as for"
            " grads."
        )


def _try_update(tx, grads, state, params, extra_args) -> tuple[set[str], str | None]:
    """The names of the functions that an update calls, and the error that it raises."""
    called = set()

    def noted(name, function):
        def call(*args, **kwargs):
            called.add(name)
            return function(*args, **kwargs)

        return call

    functions = {name: noted(name, f) for name, f in _functions(extra_args).items()}
    try:
        jax.eval_shape(
            lambda *args: tx.update(*args, **extra_args | functions), grads, state, params
        )
    except Exception as error:
        return called, f"tx.update fails with these arguments, {type(error).__name__}: {error}"
    return called, None


class _ArrivedError(Exception):
    """Ends an update once the transformation has received its gradients."""


def _check_arrival(tx, grads, state, params, extra_args, tolerance) -> Iterator[str]:
    """Compares the gradients that reach the transformation with those given, large ones, too."""
    arrived = []

    def see(grads):
        arrived.append(grads)
        raise _ArrivedError

    for text, given in (("", grads), (f" if they are {_LARGE:.0e} times as large", _scaled(grads))):
        arrived.clear()
        try:
            with jax.disable_jit():  # so that a lax.cond around it runs on numbers, too
                tx.update(
                    given, state, params, **extra_args | {"grad_fn": _check.GradientObserver(see)}
                )
        except Exception:  # _try_update has reported any other
            pass
        problems = [
            problem
            for received in arrived
            for problem in _differences(received, given, params, tolerance / 10, _BEHIND)
        ]
        for problem in problems:
            yield (
                "The sharpness-aware transformation must be the first of the chain, but something"
                f" in tx changes grads before they reach it{text}: there they {problem}"
            )
        if problems:
            return


def _scaled(grads):
    """The gradients times ``_LARGE``, in float32 where their dtype would overflow."""
    return jax.tree.map(lambda x: x * jnp.asarray(_LARGE, x.dtype), _tree.widen(grads))


def _check_gradients(grads, params, extra_args, called, error, tolerance) -> Iterator[str]:
    functions = _functions(extra_args)
    point = _tree.widen(params)  # as the transformation does

    if "grad_fn" in functions:
        try:
            taken, again = (functions["grad_fn"](point) for _ in range(2))
        except Exception:
            if error is None:
                raise
            return
        shapes = _check.differing_shapes(taken, grads)
        if shapes and "must return gradients only" not in (error or ""):
            yield f"grad_fn(params) must return gradients only, shaped like grads, got {shapes}."
        if shapes:
            return
        if not _distance(again, taken) <= tolerance / 10 and _is_finite(taken):
            yield (
                "grad_fn is not a function of its params alone: called twice, its results differ by"
                f" {_distance(again, taken):.2g} of their norm. It draws a new dropout key or"
                " mini-batch at each call, or moves a model (dropout counters, BatchNorm). Draw"
                " them before and close over them; with NNX use"
                " arsam_jax.flax.nnx_value_and_grad."
            )
        for problem in _differences(grads, taken, params, tolerance):
            yield f"Compared with grad_fn(params), grads {problem}"

    gradients = {}
    if "value_fn" in functions:
        gradients["the gradient of value_fn"] = _tree.gradient(functions["value_fn"])
    if called == {"example_loss_fn"}:  # otherwise it only selects examples
        gradients["the gradient of the mean of example_loss_fn"] = _tree.gradient(
            lambda params: jnp.mean(functions["example_loss_fn"](params, extra_args.get("batch")))
        )
    yield from _check_microbatches(params, extra_args, tolerance)
    for name, gradient in gradients.items():
        try:
            problems = [*_differences(grads, gradient(point), params, tolerance)]
        except Exception as its_error:
            problems = [] if error else [f"... {type(its_error).__name__}: {its_error}"]
        for problem in problems:
            yield f"Compared with {name}, grads {problem}"


def _check_microbatches(params, extra_args, tolerance) -> Iterator[str]:
    given, batch = (extra_args.get(name) for name in ("microbatch_grads", "batch"))
    example_loss_fn = _functions(extra_args).get("example_loss_fn")
    if given is None or example_loss_fn is None or batch is None:
        return
    count = len(jax.tree.leaves(given)[0])
    try:
        take = microbatches.value_and_grad(example_loss_fn, count)
        taken = jax.tree.map(jnp.conj, take(_tree.widen(params), batch)[2])
    except Exception:  # in the user's functions, which the update has reported
        return
    if _check.differing_shapes(given, taken):  # the update has reported it
        return
    for k in range(count):
        own, right = (jax.tree.map(operator.itemgetter(k), tree) for tree in (given, taken))
        for problem in _differences(own, right, params, tolerance):
            yield (
                f"microbatch_grads of micro-batch {k}, of examples {k}, {k + count}, …, compared"
                f" with the gradient of example_loss_fn there, {problem}"
            )
            return


def _differences(got, expected, params, tolerance, else_why=_OTHER_LOSS) -> Iterator[str]:
    """How gradients differ from others, as verbs of which they are the subject."""
    shapes = _check.differing_shapes(got, expected)
    if shapes:
        yield f"have another structure: {shapes}."
        return
    if not (_is_finite(got) and _is_finite(expected)):
        which = "are not" if _is_finite(expected) else "should be compared with what is not"
        yield f"{which} finite, as after the overflow of a loss scale."
        return
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(got)]
    g, e = _same_dtypes(got, expected)
    least = 1e-3 * tolerance * max(_norm(g), _norm(e))
    norms = [*zip(*jax.device_get((_norms(g), _norms(e))), strict=True)]
    is_zero = [own == 0 and right > least for own, right in norms]
    is_extra = [right == 0 and own > least for own, right in norms]
    for flags, verb in ((is_zero, "are 0"), (is_extra, "alone are not 0")):
        if any(flags):
            where = [name or "the root" for name, flag in zip(names, flags, strict=True) if flag]
            yield f"{verb} at {_check.list_some(where)}. {_FREEZING}."
    both = [not (a or b) for a, b in zip(is_zero, is_extra, strict=True)]
    g, e, w = (
        [x for x, keep in zip(leaves, both, strict=True) if keep]
        for leaves in (g, e, jax.tree.leaves(params))
    )
    if not _distance(g, e) <= tolerance:
        yield _explain(g, e, w, tolerance, else_why)


def _explain(g, e, w, tolerance, else_why) -> str:
    """What two lists of gradients that differ look like."""
    factor, rest = map(float, _fit(g, e))
    if rest <= tolerance * _norm(g):
        text = f"are {factor:.4g} times as large: "
        whole = max(factor, 1 / factor) if factor > 0 else 0
        if factor < 0:
            return text + "an optimizer returned them. Put it after the transformation."
        if 1.5 < whole < 50 and abs(whole - round(whole)) < 0.01 * whole:
            here = f" (there are {jax.device_count()} devices)" * (jax.device_count() > 1)
            return text + (
                f"a sum in place of a mean over {round(whole)} devices or micro-batches{here}, or a"
                " loss scale. Give means without a scale on both sides; in shard_map and pmap"
                " arsam_jax.parallel.value_and_grad does."
            )
        return text + "a loss scale, a clip or sums in place of means. Use the same on both sides."
    conjugate = [jnp.conj(x) for x in e]
    if _distance(g, conjugate) <= tolerance:
        return "are the complex conjugates: conjugate jax.grad on both sides, as optax takes it."
    change = [x - y for x, y in zip(g, e, strict=True)]
    decay, difference = map(float, _fit(change, _same_dtypes(w, g)[0]))
    if difference <= 0.1 * _norm(change):
        return (
            f"have {decay:.3g} · params added: weight decay on one side. Put it into the loss, or"
            " after the transformation."
        )
    cosine = float(_tree.safe_divide(_tree.dot(g, e), _tree.norm(g) * _tree.norm(e)))
    return (
        f"differ by {_distance(g, e):.2g} of the norm, with a cosine of {cosine:.3f}: {else_why}."
    )


# What follows is compiled once for a tree, not operation by operation for each shape in it.


@jax.jit
def _fit(g, e):
    """The factor with which ``e`` is closest to ``g``, and the norm of the remaining difference."""
    factor = _tree.safe_divide(_tree.dot(g, e), _tree.dot(e, e))
    rest = [x - factor.astype(y.dtype) * y for x, y in zip(g, e, strict=True)]
    return factor, _tree.norm(rest)


@jax.jit
def _norms(leaves):
    return [_tree.norm([x]) for x in leaves]


@jax.jit
def _difference(a, b):
    return [x - y for x, y in zip(*_same_dtypes(a, b), strict=True)]


def _distance(a, b) -> float:
    """‖a − b‖ in units of the larger of both norms."""
    return _norm(_difference(a, b)) / (max(_norm(a), _norm(b)) or 1)


def _same_dtypes(a, b):
    """The leaves of both trees, in dtypes that hold those of either, at least float32."""
    pairs = [*zip(jax.tree.leaves(_tree.widen(a)), jax.tree.leaves(_tree.widen(b)), strict=True)]
    dtypes = [jnp.promote_types(x.dtype, y.dtype) for x, y in pairs]
    first = [x.astype(dtype) for (x, _), dtype in zip(pairs, dtypes, strict=True)]
    return first, [y.astype(dtype) for (_, y), dtype in zip(pairs, dtypes, strict=True)]


def _norm(tree) -> float:
    return math.hypot(*jax.device_get(_norms(jax.tree.leaves(tree))))


def _is_finite(tree) -> bool:
    return math.isfinite(_norm(tree))


def _tolerance(grads, params, extra_args) -> float:
    """By the narrowest dtype that anything is computed in."""
    functions = _functions(extra_args)
    leaves = jax.tree.leaves((grads, params))
    is_narrow = any(_tree.wide_dtype(x) != jnp.result_type(x) for x in leaves)
    for name in ("grad_fn", "value_fn"):
        if name in functions and not is_narrow:
            try:
                jaxpr = str(jax.make_jaxpr(functions[name])(params))
            except Exception:  # in the user's functions, which is reported elsewhere
                continue
            is_narrow = "f16[" in jaxpr or "f8_" in jaxpr
    return 0.1 if is_narrow else 0.01


def _functions(extra_args) -> dict[str, Callable]:
    names = ("grad_fn", "value_fn", "example_loss_fn")
    return {name: extra_args[name] for name in names if callable(extra_args.get(name))}


def _find(tree, kind) -> list:
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
    return [x for x in leaves if isinstance(x, kind)]
