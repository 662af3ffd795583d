"""Glue for Keras 3 on its JAX backend: ``model.fit`` with a sharpness-aware gradient.

Needs the extra ``arsam-jax[keras]`` and ``KERAS_BACKEND=jax``.
"""

import inspect
from typing import Any

import jax
import keras
import optax

from arsam_jax import core

_NAME = "sharpness_aware_state"
_Model: Any = object  # what it is mixed into has the attributes of a keras.Model


class SharpnessAware(_Model):
    r"""A mixin for ``keras.Model``, whose ``compile`` takes a link for what ``fit`` minimises.

    Put it first; everything else of Keras stays as it is::

        class Model(arsam_jax.keras.SharpnessAware, keras.Model):
            pass

        model = Model(inputs, outputs)
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            link=arsam_jax.arsam(rho=0.1, alpha=0.4),
        )
        model.fit(images, labels)

    The link turns the gradient of each mini-batch into a sharpness-aware one, and the optimizer of
    Keras is applied to that; clipping and weight decay of the optimizer come after the link. Both
    passes start from the same seeds, so they draw the same dropout masks; BatchNorm statistics,
    metrics and the printed loss come from the clean pass. Loss scales are divided out of what the
    link sees. ``fit`` reports ``sampled_share``, %SAM / 100, with the losses.

    The state of the link consists of variables of the optimizer. ``save_weights`` of the model has
    them, so a model that is built, compiled with the same link and given ``load_weights`` goes on
    as if it had not stopped (only the seeds of dropout start anew, which Keras does not save);
    ``keras.callbacks.BackupAndRestore`` does that by itself. A model of
    ``keras.models.load_model`` is compiled without a link.

    Costs one gradient a step and one more for each that the link samples. Links that take gradients
    of single examples or of the mini-batch before (``example_loss_fn``, ``previous_grad_fn``) do
    not work here.
    """

    link: optax.GradientTransformationExtraArgs | None = None

    def compile(self, *args: Any, link: optax.GradientTransformation | None = None, **kwargs: Any):
        """Keras' ``compile`` with a link.

        Args:
          *args: of ``keras.Model.compile``.
          link: of ``arsam_jax``, or a chain around one, without the base optimizer. None trains as
            Keras does.
          **kwargs: of ``keras.Model.compile``.

        Raises:
          ValueError: for an optimizer that accumulates gradients or has been compiled with a link
            before, and where Keras' backend is not JAX.
        """
        super().compile(*args, **kwargs)
        self.link = None if link is None else optax.with_extra_args_support(link)
        if link is None:
            return
        if keras.backend.backend() != "jax":
            raise ValueError(
                "A link needs Keras on JAX: set the environment variable KERAS_BACKEND=jax before"
                f" keras is imported. The backend is {keras.backend.backend()}."
            )
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if inner.gradient_accumulation_steps:
            raise ValueError(
                "gradient_accumulation_steps takes a second gradient at each part of the batch and"
                " mixes batches. Give fit the whole batch, or accumulate inside compute_loss."
            )
        if self._places():
            raise ValueError(
                "The optimizer holds the state of a link already: compile with a new optimizer."
            )
        if self.built:
            self._make_state()

    def make_train_function(self, force: bool = False):
        """Keras' own, which ``fit`` calls once the model is built."""
        if self.link is not None and not self._places():
            self._make_state()
        super().make_train_function(force)

    @property
    def link_state(self) -> Any:
        """The state of the link, as ``metrics_dict`` takes it; in callbacks, at ends of epochs."""
        return self._state_of([v.value for v in self.optimizer.variables])

    def gradients(self, x: Any, y: Any = None, sample_weight: Any = None) -> tuple[Any, Any, Any]:
        """What ``check_wiring`` takes, at the variables that the model has now.

        Example::

            grads, params, grad_fn = model.gradients(images[:64], labels[:64])
            arsam_jax.check_wiring(model.link, grads, params, grad_fn=grad_fn)

        Returns:
          ``(grads, params, grad_fn)`` of this mini-batch.
        """
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        kinds = "trainable_variables", "non_trainable_variables", "metrics_variables"
        *state, metrics = ([v.value for v in getattr(self, kind)] for kind in kinds)
        optimizer = [v.value for v in self.optimizer.variables]
        _, grads, grad_fn = self._value_and_grads(
            (*state, optimizer, metrics), (x, y, sample_weight)
        )
        return grads, state[0], grad_fn

    def train_step(self, state: Any, data: Any) -> Any:
        """One step of ``fit``, as Keras asks for it: the logs and the new state."""
        if self.link is None:
            return super().train_step(state, data)
        params, _, optimizer_variables, _ = state
        link_state = self._state_of(optimizer_variables)
        data = keras.utils.unpack_x_y_sample_weight(data)
        (scale, y_pred, loss, others, metrics), grads, grad_fn = self._value_and_grads(state, data)
        updates, link_state = self.link.update(grads, link_state, params, grad_fn=grad_fn)
        if scale is not None:  # which the optimizer takes out again
            updates = [g * scale.astype(g.dtype) for g in jax.tree.leaves(updates)]
        params, optimizer_variables = self.optimizer.stateless_apply(
            optimizer_variables, updates, params
        )
        optimizer_variables = list(optimizer_variables)
        for i, x in zip(self._places(), jax.tree.leaves(link_state), strict=True):
            optimizer_variables[i] = x

        x, y, sample_weight = data
        size = jax.tree.leaves(x)[0].shape[0]
        mapping = list(zip(self.metrics_variables, metrics, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss, sample_weight=size)
            logs = self.compute_metrics(x, y, y_pred, sample_weight)
        metrics = [_current(scope, v, value) for v, value in mapping]
        link_state = core.get_state(link_state)
        share = link_state.metrics.num_sampled / link_state.step
        return logs | {"sampled_share": share}, (params, others, optimizer_variables, metrics)

    def _value_and_grads(self, state, data):
        """Of the clean pass everything; and ``grad_fn``, which drops all but gradients."""
        params, others, optimizer_variables, metrics = state
        x, y, sample_weight = data
        rest = [
            *zip(self.non_trainable_variables, others, strict=True),
            *zip(self.metrics_variables, metrics, strict=True),
        ]
        training = {"training": True} if _takes(self.call, "training") else {}
        in_loss = {"training": True} if _takes(self.compute_loss, "training") else {}
        scales = list(zip(self.optimizer.variables, optimizer_variables, strict=True))
        with keras.StatelessScope(state_mapping=scales):
            scale = self.optimizer.scale_loss(1.0)
        scale = None if isinstance(scale, float) and scale == 1 else jax.numpy.asarray(scale)

        def loss_fn(params):
            mapping = [*zip(self.trainable_variables, params, strict=True), *rest]
            with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
                y_pred = self(x, **training)
                loss = self.compute_loss(x, y, y_pred, sample_weight, **in_loss)
            moved = [_current(scope, v, value) for v, value in rest]
            scaled = loss if scale is None else keras.ops.multiply(loss, scale)
            return scaled, (y_pred, loss, moved[: len(others)], moved[len(others) :])

        def evaluate(params):
            (_, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
            if scale is not None:
                grads = [g / scale.astype(g.dtype) for g in grads]
            return aux, grads

        aux, grads = evaluate(params)
        return (scale, *aux), grads, lambda params: evaluate(params)[1]

    def _places(self) -> list[int]:
        """Where among the variables of the optimizer the state of the link is."""
        return [i for i, v in enumerate(self.optimizer.variables) if v.name == _NAME]

    def _make_state(self):
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        assert self.link is not None
        for x in jax.tree.leaves(self.link.init([v.value for v in self.trainable_variables])):
            variable = self.optimizer.add_variable(x.shape, dtype=str(x.dtype), name=_NAME)
            variable.assign(x)

    def _state_of(self, optimizer_variables):
        assert self.link is not None
        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in self.trainable_variables]
        structure = jax.tree.structure(jax.eval_shape(self.link.init, shapes))
        return jax.tree.unflatten(structure, [optimizer_variables[i] for i in self._places()])


def _current(scope, variable, value):
    new = scope.get_current_value(variable)
    return value if new is None else new


def _takes(function, name):
    return name in inspect.signature(function).parameters
