"""Glue for Flax: a Linen ``TrainState`` that forwards extra arguments, ``grad_fn`` for NNX models.

Needs the extra ``arsam-jax[flax]``.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import optax
from flax import nnx
from flax.training import train_state

_EXTRA_ARGS = {
    *("grad_fn", "previous_grad_fn", "value_fn", "example_loss_fn", "batch", "fisher_batch"),
    *("example_index", "axis_name"),
    *("value", "grad"),
}


class TrainState(train_state.TrainState):
    """Linen's ``TrainState``, whose ``apply_gradients`` forwards extra arguments to the optimizer.

    Example::

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, batch, dropout_key)
        grad_fn = lambda params: jax.grad(loss_fn, has_aux=True)(
            params, state.batch_stats, batch, dropout_key)[0]
        state = state.apply_gradients(grads=grads, grad_fn=grad_fn, batch_stats=batch_stats)

    BatchNorm statistics come from the clean pass, since ``grad_fn`` drops the auxiliary output of
    the perturbed one, and both passes share one dropout key.
    """

    def apply_gradients(
        self, *, grads: Any, extra_args: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Self:
        """Takes an optimizer step.

        Args:
          grads: gradients shaped like ``params``.
          extra_args: further extra arguments of ``tx.update``, by name.
          **kwargs: names of fields of the state (``batch_stats=...``) replace those fields; the
            others are extra arguments of ``tx.update``: ``grad_fn``, ``previous_grad_fn``,
            ``value_fn``, ``example_loss_fn``, ``batch``, ``fisher_batch``, ``example_index``,
            ``axis_name``, and optax's ``value`` and ``grad``. An optimizer that takes none ignores
            them.

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


def nnx_grad_fn(
    loss_fn: Callable[..., Any],
    model: nnx.Module,
    *args: Any,
    wrt: Any = nnx.Param,
    has_aux: bool = False,
) -> Callable[[Any], Any]:
    """The ``grad_fn`` of an NNX model: gradients at other parameters, the model left untouched.

    Call it before the clean pass, which moves the state of the model: the dropout counters that
    ``grad_fn`` uses are those at the time of this call, so both passes draw the same mask. Changes
    that the perturbed pass makes to BatchNorm statistics are dropped.

    Example::

        @nnx.jit
        def train_step(model, optimizer, batch):
            grad_fn = nnx_grad_fn(loss_fn, model, batch)
            loss, grads = nnx.value_and_grad(loss_fn)(model, batch)
            optimizer.update(model, grads, grad_fn=grad_fn)
            return loss

    Args:
      loss_fn: ``loss_fn(model, *args) -> loss``, or ``(loss, aux)`` with ``has_aux``.
      model: the model, whose parameters, other state and counters are read now.
      *args: further arguments of ``loss_fn``: the mini-batch.
      wrt: the filter of the parameters, as given to ``nnx.Optimizer``.
      has_aux: whether ``loss_fn`` returns auxiliary data, which is dropped.

    Returns:
      ``grad_fn(params) -> grads`` over the pure parameters that ``nnx.Optimizer.update`` passes.
    """
    graphdef, _, rest = nnx.split(model, wrt, ...)
    rest = nnx.as_pure(rest)

    def loss_at(params):
        output = loss_fn(nnx.merge(graphdef, params, rest, copy=True), *args)
        return output[0] if has_aux else output

    return jax.grad(loss_at)
