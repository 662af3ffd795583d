"""Keras 3 on its JAX backend: ``model.fit`` with sharpness-aware gradients.

Needs the extra ``arsam-jax[keras]`` and ``KERAS_BACKEND=jax``.
"""

import inspect
from typing import Any

import jax
import keras
import optax

from arsam_jax import _check
from arsam_jax.state import get_state

_NAME = "sharpness_aware_state"
_SHARE = "sampled_share"
_OWN_LOOP = """
    params = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    optimizer.build(model.trainable_variables)
    optimizer_state = [v.value for v in optimizer.variables]
    link_state = link.init(params)

    @jax.jit
    def train_step(params, others, optimizer_state, link_state, x, y):
        def loss_at(params):
            y_pred, changed = model.stateless_call(params, others, x, training=True)
            return loss_fn(y, y_pred), changed  # a mean over the examples

        value_and_grad = jax.value_and_grad(loss_at, has_aux=True)
        (loss, moved), grads = value_and_grad(params)
        grads, link_state = link.update(
            grads, link_state, params, grad_fn=lambda params: value_and_grad(params)[1]
        )
        params, optimizer_state = optimizer.stateless_apply(optimizer_state, grads, params)
        return params, moved, optimizer_state, link_state, loss

    for x, y in batches:
        params, others, optimizer_state, link_state, loss = train_step(
            params, others, optimizer_state, link_state, x, y
        )
    variables = model.trainable_variables + model.non_trainable_variables
    for variable, value in zip(variables, [*params, *others]):
        variable.assign(value)

To accumulate gradients, average value_and_grad over the parts of a batch (jax.lax.map)."""
_Model: Any = object  # the class it is mixed into has the attributes of a keras.Model


class SharpnessAware(_Model):
    r"""A mixin for ``keras.Model``: ``compile`` takes a sharpness-aware transformation, ``link``.

    Put it first in the list of base classes. Everything else of Keras stays as it is::

        class Model(arsam_jax.keras.SharpnessAware, keras.Model):
            pass

        model = Model(inputs, outputs)
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            link=arsam_jax.arsam(rho=0.1),
        )
        model.fit(images, labels)

    The transformation turns the gradient of each mini-batch into a sharpness-aware one, and the
    Keras optimizer is applied to that. Clipping and weight decay of the optimizer come after the
    transformation. Both passes start from the same seeds, so they draw the same dropout masks.
    BatchNorm statistics, metrics and the printed loss come from the clean pass. Loss scales are
    divided out of the gradients that the transformation sees. ``fit`` reports ``sampled_share``,
    the share of the steps so far that took a second gradient, with the losses.

    **Saving.** The state of the transformation consists of variables of the optimizer, which
    ``save_weights`` stores. A model that is built, then compiled with the same transformation, and
    given ``load_weights`` continues as if it had not stopped (except for dropout seeds, which Keras
    does not save). ``keras.callbacks.BackupAndRestore`` does this by itself. If the model is
    compiled before it is built, or with another transformation or optimizer, only the weights are
    loaded and Keras warns "Skipping variable loading for optimizer". A file of ``model.save`` does
    not contain the transformation: a model from ``keras.models.load_model`` is not compiled.
    Compile it with the transformation and call ``load_weights`` with the same file to continue.
    Copies from ``keras.models.clone_model`` need ``compile`` before ``fit``, too.

    Costs one gradient per step, and one more on each sampled step. ``compile`` refuses methods that
    need single examples or the previous mini-batch (``example_loss_fn``, ``previous_grad_fn``),
    models with a ``train_step`` of their own, and optimizers with ``gradient_accumulation_steps``;
    the error shows a training loop in which they work. ``train_on_batch`` returns what it returns
    without a transformation. ``measure=True`` is not used, so all norms in ``link_state`` are 0.
    """

    link: optax.GradientTransformationExtraArgs | None = None
    _is_on_batch = False

    def compile(
        self,
        optimizer: Any = "rmsprop",
        *args: Any,
        link: optax.GradientTransformation | None = None,
        **kwargs: Any,
    ):
        """Keras' ``compile`` with a sharpness-aware transformation.

        Args:
          optimizer: of ``keras.Model.compile``, as are ``args`` and ``kwargs``.
          *args: see ``keras.Model.compile``.
          link: a transformation of ``arsam_jax``, or a chain around one, without the base
            optimizer. None trains as Keras does.
          **kwargs: see ``keras.Model.compile``.

        Raises:
          TypeError, ValueError: for a wrong transformation, a class with its own ``train_step``, an
            optimizer that accumulates gradients or has been compiled with a transformation before,
            and if Keras' backend is not JAX. The model then stays as it was. What depends on the
            parameters is checked by ``fit`` if the model is not built yet.
        """
        optimizer = keras.optimizers.get(optimizer)
        if link is not None:
            _check_use(type(self), optimizer, link)
            link = optax.with_extra_args_support(link)
            if self.built:
                _check_link(link, self.trainable_variables)
            else:
                _check_arguments(link)
        super().compile(optimizer, *args, **kwargs)
        self.link = link
        if link is not None and self.built:
            self._make_state()

    def get_compile_config(self) -> dict[str, Any]:
        """Keras' own; empty with a transformation, so that a loaded model is not compiled."""
        return super().get_compile_config() if self.link is None else {}

    def compile_from_config(self, config: dict[str, Any]):
        """What Keras does for a class that does not override ``compile``."""
        if not config:
            return
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def make_train_function(self, force: bool = False):
        """Keras' own, which ``fit`` calls once the model is built."""
        if self.link is not None and not _places(self.optimizer):
            _check_link(self.link, self.trainable_variables)
            self._make_state()
        # A new function each time, because jit caches by function, with the old transformation.
        train_step, made_before = self.train_step, self.train_function
        self.__dict__["train_step"] = lambda state, data: train_step(state, data)
        try:
            super().make_train_function(force)
        finally:
            del self.__dict__["train_step"]
        if self.train_function is not made_before:
            self.train_function = self._without_share(self.train_function)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Keras' own, which returns what it does without a link: no ``sampled_share``."""
        self._is_on_batch = True
        try:
            return super().train_on_batch(*args, **kwargs)
        finally:
            self._is_on_batch = False

    def _without_share(self, train_function):
        def call(state, iterator):
            logs, state = train_function(state, iterator)
            if self._is_on_batch and self.link is not None:
                logs = {name: value for name, value in logs.items() if name != _SHARE}
            return logs, state

        return call

    @property
    def link_state(self) -> Any:
        """The state of the transformation, for ``metrics_dict``; in callbacks, at ends of epochs.

        Raises:
          ValueError: without a transformation, and before the model is built.
        """
        if self.link is None:
            raise ValueError(
                "link_state needs a model that is compiled with a link, got link=None."
            )
        if not _places(self.optimizer):
            raise ValueError(
                "link_state is made when the model is built: build it before compile, or call fit."
            )
        return self._state_of([v.value for v in self.optimizer.variables])

    def gradients(self, x: Any, y: Any = None, sample_weight: Any = None) -> tuple[Any, Any, Any]:
        """Returns the arguments of ``check_wiring``, at the current variables of the model.

        Example::

            grads, params, grad_fn = model.gradients(images[:64], labels[:64])
            arsam_jax.check_wiring(model.link, grads, params, grad_fn=grad_fn)

        Returns:
          ``(grads, params, grad_fn)`` of this mini-batch.

        Raises:
          ValueError: before the model is built.
        """
        if not self.built:
            raise ValueError("gradients needs a model that is built: call it on x before compile.")
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
        """One step of ``fit``, as Keras calls it: returns the logs and the new state."""
        if self.link is None:
            return super().train_step(state, data)
        params, _, optimizer_variables, _ = state
        link_state = self._state_of(optimizer_variables)
        data = keras.utils.unpack_x_y_sample_weight(data)
        (scale, y_pred, loss, others, metrics), grads, grad_fn = self._value_and_grads(state, data)
        updates, link_state = self.link.update(grads, link_state, params, grad_fn=grad_fn)
        if scale is not None:  # The optimizer divides by it.
            updates = [g * scale.astype(g.dtype) for g in jax.tree.leaves(updates)]
        params, optimizer_variables = self.optimizer.stateless_apply(
            optimizer_variables, updates, params
        )
        optimizer_variables = list(optimizer_variables)
        for i, x in zip(_places(self.optimizer), jax.tree.leaves(link_state), strict=True):
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
        if _SHARE in logs:
            raise ValueError(
                f"A metric of the model is named {_SHARE!r}, the name under which fit reports the"
                " share of the steps that took a second gradient. Rename that metric."
            )
        link_state = get_state(link_state)
        share = link_state.metrics.num_sampled / link_state.step
        return logs | {_SHARE: share}, (params, others, optimizer_variables, metrics)

    def _value_and_grads(self, state, data):
        """Everything from the clean pass, and ``grad_fn``, which discards all but the gradients."""
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

    def _make_state(self):
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        assert self.link is not None
        layouts = {}
        if (distribution := keras.distribution.distribution()) is not None:
            layout_of = distribution.get_variable_layout
            layouts = {v.shape: layout_of(v) for v in self.trainable_variables}
        state = self.link.init([v.value for v in self.trainable_variables])
        for i, x in enumerate(jax.tree.leaves(state)):
            variable = self.optimizer.add_variable(
                x.shape,
                dtype=str(x.dtype),
                layout=layouts.get(x.shape),
                name=f"{_NAME}_{i}",
            )
            variable.assign(x)

    def _state_of(self, optimizer_variables):
        assert self.link is not None
        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in self.trainable_variables]
        expected, structure = jax.tree.flatten(jax.eval_shape(self.link.init, shapes))
        leaves = [optimizer_variables[i] for i in _places(self.optimizer)]
        if [x.shape for x in leaves] != [x.shape for x in expected]:
            raise ValueError(
                "The state of link does not fit the present trainable_variables (there are"
                f" {len(shapes)}). After a change of trainable, compile with a new optimizer."
            )
        return jax.tree.unflatten(structure, leaves)


def _check_use(model_class, optimizer, link):
    """Raises for what can be seen without parameters."""
    if not isinstance(link, optax.GradientTransformation):
        raise TypeError(
            "link must be an optax.GradientTransformation, as arsam_jax.sam(rho=0.05) returns, got"
            f" {link!r}."
        )
    if keras.backend.backend() != "jax":
        raise ValueError(
            "link needs Keras on JAX: set the environment variable KERAS_BACKEND=jax before"
            f" keras is imported. The backend is {keras.backend.backend()}."
        )
    for name in ("train_step", "compute_loss_and_updates", "stateless_compute_loss"):
        classes = (c for c in model_class.__mro__ if c is not SharpnessAware)
        owner = next(c for c in classes if name in vars(c))
        if owner.__module__.partition(".")[0] != "keras":
            raise ValueError(
                f"link replaces Keras' own {name}, but {owner.__name__} defines another one. Move"
                " that code into call or compute_loss, and compile with link. Or train with"
                f" a loop of your own, which calls link and optimizer directly:\n{_OWN_LOOP}"
            )
    if getattr(optimizer, "inner_optimizer", optimizer).gradient_accumulation_steps:
        raise ValueError(
            "link does not work with gradient_accumulation_steps: the optimizer would accumulate"
            " gradients that were perturbed for one part of the batch each. Give fit the whole"
            " batch. If it does not fit into memory, train with a loop of your own, which"
            f" accumulates both gradients:\n{_OWN_LOOP}"
        )
    if _places(optimizer):
        raise ValueError(
            "The optimizer already holds the state of another link. Compile with a new optimizer."
        )


def _check_link(link, variables):
    """Raises unless the transformation returns a gradient; tries it on one entry of each leaf."""
    ones = [jax.numpy.ones((1,) * len(v.shape), v.dtype) for v in variables]
    params = jax.tree.map(jax.numpy.zeros_like, ones)  # zeros, so that weight decay adds nothing
    state = link.init(params)
    try:
        get_state(state)
    except ValueError as error:
        raise ValueError(
            "link must have exactly one sharpness-aware transformation, such as"
            f" arsam_jax.sam(rho=0.05), got one of the state {jax.tree.structure(state)}."
        ) from error
    updates, _ = _tried(link, ones, state, params)
    product = float(sum(x.astype("float32").sum() for x in jax.tree.leaves(updates)))
    if product <= 0:
        raise ValueError(
            "link must not contain the base optimizer: it must return a gradient, and its inner"
            f" product with the gradient that it was given is {product:.3g}. Pass the optimizer as"
            " compile's first argument."
        )


def _check_arguments(link):
    """Raises, before there are parameters, if the transformation needs what fit does not pass."""
    ones = [jax.numpy.ones(1)]
    try:
        _tried(link, ones, link.init(ones), ones)
    except _LacksArgumentError:
        raise
    except (
        Exception
    ):  # Anything else may be due to these parameters: fit checks with the real ones.
        return


class _LacksArgumentError(ValueError):
    pass


def _tried(link, grads, state, params):
    try:
        return link.update(grads, state, params, grad_fn=lambda _: grads)
    except _check.MissingArgumentError as error:
        raise _LacksArgumentError(
            f"link must be a method that needs nothing but grad_fn, because fit passes no"
            f" {error.argument}. sam, arsam, budgeted_sam, looksam, asam and gsam work here. For"
            f" this method write a loop of your own and pass {error.argument} to link.update:\n"
            f"{_OWN_LOOP}"
        ) from error


def _places(optimizer) -> list[int]:
    """The indices of the state of the transformation among the variables of the optimizer."""
    return [i for i, v in enumerate(optimizer.variables) if v.name.startswith(_NAME)]


def _current(scope, variable, value):
    new = scope.get_current_value(variable)
    return value if new is None else new


def _takes(function, name):
    return name in inspect.signature(function).parameters
