"""Flax: a Linen ``TrainState`` that forwards extra arguments, and the gradients of NNX models.

Needs the extra ``arsam-jax[flax]``.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training import train_state

from arsam_jax import _check, _tree, microbatches
from arsam_jax._convolutions import fast_convolutions

# Named as_pure from Flax 0.12.7 on. Before 0.12.1 it is missing, and only TrainState works.
_as_pure: Any = getattr(nnx, "as_pure", None) or getattr(nnx, "pure", None)
_EXTRA_ARGS = {
    "axis_name",
    "batch",
    "direction",
    "example_index",
    "example_loss_fn",
    "fisher_batch",
    "grad",
    "grad_fn",
    "measure",
    "microbatch_grads",
    "previous_grad_fn",
    "value",
    "value_fn",
}


class TrainState(train_state.TrainState):
    """Linen's ``TrainState``, whose ``apply_gradients`` forwards extra arguments to the optimizer.

    BatchNorm statistics come from the clean pass, since ``grad_fn`` drops the auxiliary output of
    the perturbed one, and both passes share one dropout key.

    Example::

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, batch, dropout_key)
        grad_fn = lambda params: jax.grad(loss_fn, has_aux=True)(
            params, state.batch_stats, batch, dropout_key)[0]
        state = state.apply_gradients(grads=grads, grad_fn=grad_fn, batch_stats=batch_stats)
    """

    def apply_gradients(
        self, *, grads: Any, extra_args: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Self:
        """Takes an optimizer step.

        Args:
          grads: gradients shaped like ``params``.
          extra_args: further extra arguments of ``tx.update``, by name.
          **kwargs: names of fields of the state (``batch_stats=...``) replace those fields. The
            others are extra arguments of ``tx.update``: ``grad_fn``, ``previous_grad_fn``,
            ``value_fn``, ``example_loss_fn``, ``batch``, ``fisher_batch``, ``example_index``,
            ``direction``, ``microbatch_grads``, ``axis_name``, ``measure``, and optax's ``value``
            and ``grad``. An optimizer without extra arguments ignores them.

        Raises:
          TypeError: for a name that is neither.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        unknown = kwargs.keys() - fields - _EXTRA_ARGS
        if unknown:
            raise TypeError(
                f"apply_gradients got {', '.join(sorted(unknown))}. The fields of"
                f" {type(self).__name__} are {', '.join(sorted(fields))}; extra arguments by name"
                f" are {', '.join(sorted(_EXTRA_ARGS))}, others go into extra_args."
            )
        replaced = {name: value for name, value in kwargs.items() if name in fields}
        extra_args = {k: v for k, v in kwargs.items() if k not in fields} | dict(extra_args or {})
        update = optax.with_extra_args_support(self.tx).update
        bound = optax.GradientTransformation(self.tx.init, functools.partial(update, **extra_args))
        state = super(TrainState, self.replace(tx=bound)).apply_gradients(grads=grads, **replaced)
        return state.replace(tx=self.tx)


def nnx_value_and_grad(
    loss_fn: Callable[..., Any],
    model: nnx.Module,
    *args: Any,
    wrt: Any = nnx.Param,
    has_aux: bool = False,
    num_microbatches: int = 1,
) -> tuple[Any, Any, Callable[[Any], Any]]:
    r"""Computes the loss and gradients of an NNX model, and the matching ``grad_fn``.

    The clean pass updates the state of the model (BatchNorm statistics, dropout counters) and of
    every NNX object among ``args`` (``nnx.Rngs``, ``nnx.Metric``, a second model), as
    ``nnx.value_and_grad`` does. ``grad_fn`` starts from the state before that pass, so both passes
    draw the same dropout masks, and discards its own updates.

    With ``num_microbatches`` K > 1 the gradients are accumulated, in both passes, over K
    micro-batches that run one after another: :math:`\frac1K \sum_k \nabla L_k`. State is carried
    from one micro-batch to the next, so it is updated K times per step. Micro-batch k consists of
    the examples k, k + K, k + 2K, ...

    Args:
      loss_fn: ``loss_fn(model, *args) -> loss``, a mean over examples, or ``(loss, aux)`` with
        ``has_aux``.
      model: the model. With K > 1, ``loss_fn`` must not add variables to it (``nnx.Module.sow``).
      *args: further arguments of ``loss_fn``: the mini-batch, and NNX objects. With K > 1 every
        array that has an axis is split along its first one. NNX objects are not split.
      wrt: the filter of the trained parameters of ``model``, the same as for ``nnx.Optimizer``. All
        other parameters are frozen.
      has_aux: whether ``loss_fn`` returns auxiliary data.
      num_microbatches: K >= 1, a Python integer that divides the batch size.

    Returns:
      ``(loss, grads, grad_fn)``, or ``((loss, aux), grads, grad_fn)`` with ``has_aux``. With K > 1
      the aux of the micro-batches are stacked along a new first axis. ``grad_fn(params) -> grads``
      takes the parameters that ``nnx.Optimizer.update`` passes.

    Raises:
      TypeError, ValueError: for a bad ``num_microbatches``, and by ``grad_fn`` for parameters other
        than those that ``wrt`` selects.

    Example::

        @nnx.jit
        def train_step(model, optimizer, batch):
            loss, grads, grad_fn = nnx_value_and_grad(loss_fn, model, batch)
            optimizer.update(model, grads, grad_fn=grad_fn)
            return loss
    """
    _check.check_static("num_microbatches", num_microbatches)
    _check.check_integer("num_microbatches", num_microbatches, low=1)
    pure = _Pure(loss_fn, model, args, wrt)
    if num_microbatches == 1:

        def loss_at(params):
            output, _ = pure(params, pure.rest, pure.arrays)
            return output[0] if has_aux else output

        differentiated = nnx.DiffState(0, wrt)
        value_and_grad = nnx.value_and_grad(loss_fn, argnums=differentiated, has_aux=has_aux)
        return *value_and_grad(model, *args), jax.grad(loss_at)

    parts, join = _split(pure.arrays, num_microbatches)

    def accumulate(params):
        def add_part(carry, part):
            rest, total = carry

            def loss_at(params):
                output, changed = pure(params, rest, join(part))
                loss, aux = output if has_aux else (output, None)
                return loss, (aux, changed)

            value_and_grad = jax.value_and_grad(loss_at, has_aux=True)
            (loss, (aux, changed)), grads = fast_convolutions(value_and_grad)(params)
            rest = jax.tree.map(_with_dtype_of, rest, changed)
            return (rest, _tree.add(total, grads)), (loss, aux)

        start = (pure.rest, jax.tree.map(jnp.zeros_like, _tree.widen(params)))
        (changed, total), (losses, aux) = jax.lax.scan(add_part, start, parts)
        mean = _tree.cast_like(_tree.scale(1 / num_microbatches, total), params)
        return (losses.mean(), aux) if has_aux else losses.mean(), mean, changed

    value, grads, changed = accumulate(pure.params)
    pure.update(changed)
    return value, grads, lambda params: accumulate(params)[1]


def nnx_microbatches(
    example_loss_fn: Callable[..., Any],
    model: nnx.Module,
    batch: Any,
    num_microbatches: int = 2,
    *,
    wrt: Any = nnx.Param,
) -> tuple[Any, Any, dict[str, Any]]:
    r"""Computes the loss and gradients of an NNX model, and the arguments that m-SAM needs.

    :math:`g = \frac1K \sum_k g_k`, with the gradients g_k of K micro-batches at the cost of one
    gradient of the batch (``microbatches.value_and_grad``). A sampled step of ``m_sam`` or
    ``budgeted_sam(num_microbatches=K)`` then costs one more gradient instead of two.

    Every pass over a micro-batch starts from the same state, so all of them draw the same dropout
    masks, which have the size of a micro-batch. The clean pass updates the model and every NNX
    object in ``batch`` once per step: counters by one micro-batch, and floating point state such as
    BatchNorm statistics by the mean over the micro-batches.

    Args:
      example_loss_fn: ``(model, batch) -> losses`` of shape (batch,).
      model: the model. ``example_loss_fn`` must not add variables to it (``nnx.Module.sow``).
      batch: pytree of arrays that share their first axis. It may also contain NNX objects.
      num_microbatches: K >= 1, a Python integer that divides the batch size; that of the method.
      wrt: the filter of the trained parameters, the same as for ``nnx.Optimizer``.

    Returns:
      ``(loss, grads, extra_args)``: the mean loss, and ``grad_fn``, ``example_loss_fn``, ``batch``
      and ``microbatch_grads`` for ``nnx.Optimizer.update``, by name.

    Raises:
      TypeError, ValueError: for a bad ``num_microbatches``, or losses whose shape is not (batch,).

    Example::

        @nnx.jit
        def train_step(model, optimizer, batch):
            loss, grads, extra_args = nnx_microbatches(example_loss_fn, model, batch)
            optimizer.update(model, grads, **extra_args)
            return loss
    """
    pure = _Pure(lambda model, batch: example_loss_fn(model, batch), model, (batch,), wrt)
    (arrays,) = pure.arrays

    def losses_at(params, batch):
        return pure(params, pure.rest, (batch,))

    def of_parts(old, new):  # Counters and keys cannot be averaged; all parts update them alike.
        averages = jnp.issubdtype(new.dtype, jnp.inexact)
        return _with_dtype_of(old, new.mean(0) if averages else new[0])

    take = microbatches.value_and_grad(losses_at, num_microbatches, has_aux=True)
    (loss, moved), grads, of_each = take(pure.params, arrays)
    pure.update(jax.tree.map(of_parts, pure.rest, moved))
    extra_args = {
        "grad_fn": lambda params: take(params, arrays)[1],
        "example_loss_fn": lambda params, batch: losses_at(params, batch)[0],
        "batch": arrays,
        "microbatch_grads": _as_pure(of_each),
    }
    return loss, grads, extra_args


class _Pure:
    """``fn(model, *args)`` as a pure function ``(params, rest, arrays) -> (output, rest)``.

    ``params`` are the trained parameters of the model. ``rest`` is all other state, of the model
    and of the NNX objects among ``args``. ``arrays`` is ``args`` with None in place of those.
    """

    def __init__(self, fn: Callable[..., Any], model: nnx.Module, args: tuple, wrt: Any):
        leaves, self._structure = jax.tree.flatten(args, is_leaf=_is_nnx)
        objects = [x for x in leaves if _is_nnx(x)]
        self.arrays = jax.tree.unflatten(
            self._structure, [None if _is_nnx(x) else x for x in leaves]
        )
        is_trained = nnx.filterlib.to_predicate(wrt)
        self._filter = lambda path, value: path[0] == 0 and is_trained(path[1:], value)
        self._fn, self._objects = fn, (model, objects)
        self._graphdef, self._trained, rest = nnx.split(self._objects, self._filter, ...)
        self.rest = _as_pure(rest)
        self.params = nnx.state(model, wrt)

    def __call__(self, params: Any, rest: Any, arrays: Any) -> tuple[Any, Any]:
        expected, found = (
            dict(nnx.to_flat_state(_as_pure(state))) for state in (self.params, params)
        )
        if expected.keys() != found.keys():
            names = (
                _check.list_some(sorted(".".join(map(str, path)) for path in state)) or "none"
                for state in (expected, found)
            )
            raise ValueError(
                "grad_fn must be called with the parameters that wrt selects: {}. Got: {}. Pass the"
                " same filter wrt to nnx.Optimizer and to the function of arsam_jax.flax that"
                " returned grad_fn.".format(*names)
            )
        trained = jax.tree.unflatten(jax.tree.structure(self._trained), jax.tree.leaves(params))
        copies = nnx.merge(self._graphdef, trained, rest, copy=True)
        model, objects = copies
        remaining = iter(objects)
        leaves = [
            next(remaining) if x is None else x for x in self._structure.flatten_up_to(arrays)
        ]
        output = self._fn(model, *jax.tree.unflatten(self._structure, leaves))
        return output, _as_pure(nnx.split(copies, self._filter, ...)[2])

    def update(self, rest: Any):
        """Sets the state of the model and of the other NNX objects."""
        nnx.update(self._objects, rest)


def _is_nnx(x):
    return isinstance(x, nnx.Pytree | nnx.Variable)


def _with_dtype_of(old, new):
    return new if new.dtype == old.dtype else new.astype(old.dtype)  # a key has no astype


def _split(args, num_parts):
    """The arrays of ``args`` in parts along a new first axis, and what makes args of a part."""
    leaves, structure = jax.tree.flatten(args)
    is_split = [bool(jnp.ndim(x)) for x in leaves]
    sizes = {x.shape[0] for x, splits in zip(leaves, is_split, strict=True) if splits}
    if len(sizes) != 1 or next(iter(sizes)) % num_parts:
        raise ValueError(
            "num_microbatches must divide the first axis of every array in args, of one size, got"
            f" {num_parts} and the sizes {sorted(sizes)}."
        )
    parts = microbatches.split(
        [x for x, splits in zip(leaves, is_split, strict=True) if splits], num_parts
    )

    def join(part):
        of_part = iter(part)
        whole = zip(leaves, is_split, strict=True)
        return jax.tree.unflatten(structure, [next(of_part) if s else x for x, s in whole])

    return parts, join
