"""What the runs of a comparison share: the model, the compiled train step and the evaluation.

``step.py`` has the train step; here it is put together with what some settings add to it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax
from examples.classification import accumulation, ema, in_microbatches, models, step, trajectory
from examples.classification.config import Config
from examples.classification.data import augment
from examples.classification.data.images import Dataset, Images
from examples.classification.methods import (
    MICROBATCHED,
    NUM_MICROBATCHES,
    UNMEASURED,
    make_method,
    make_schedule,
)
from examples.common import devices, pipeline
from examples.common.errors import ConfigError

STEP_METRICS = (
    "loss",
    "accuracy",
    "grad_norm",
    "sampled",
    "probability",  # ARSAM's p
    "ratio",  # ARSAM's c; this and the following on sampled steps only
    "perturbed_grad_norm",
    "correction_norm",
    "cosine",
)
_EVALUATION_BATCH = 500


class TrainState(step.TrainState):
    """Also holds what some settings need: see ``trajectory.py`` and ``ema.py``."""

    key: jax.Array
    """Of dropout and augmentation in all steps."""
    trajectory: trajectory.Trajectory
    ema: ema.Ema | None


class Trainer:
    """What the runs of a comparison share: the data, the model and the compiled functions.

    Several ``seeds`` are trained together, by ``vmap``: then states, labels and batches have a
    leading axis for them, and each step and evaluation is one of all of them.
    """

    def __init__(self, config: Config, dataset: Dataset):
        self.config = config
        self.data = dataset
        self.peak_bytes: dict[tuple[str, int], int] = {}
        """Memory of a step of a method with so many seeds at once: its state, the batch and what
        the compiler reserves for all in between."""
        self.steps_per_epoch = len(dataset.train_images) // config.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.mesh = devices.make_mesh(config.devices)
        _check_batch(config, len(dataset.train_images), self.mesh.size)
        make_schedule(config, self.total_steps)  # or an error, now
        image_shape = dataset.train_images.shape[1:]
        self._one_image = np.zeros((1, *image_shape), np.float32)
        try:
            self.model = models.make_model(
                config.model,
                image_shape[0],
                dataset.num_classes,
                width=config.width,
                depth=config.depth,
                dropout=config.dropout,
                dtype=config.dtype,
            )
            self._init = jax.jit(lambda key, x: self.model.init(key, x, is_training=False))
            shapes = jax.eval_shape(self._init, jax.random.PRNGKey(0), self._one_image)
        except ValueError as error:
            raise ConfigError(f"--model {config.model}: {error}") from error
        self.num_params = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        self._losses_fn = step.make_losses_fn(
            self.model.apply, label_smoothing=config.label_smoothing
        )
        self._optimizers: dict[str, optax.GradientTransformation] = {}
        whole, split = devices.whole(self.mesh), devices.split(self.mesh)
        self._count_correct = jax.jit(
            self._num_correct, in_shardings=(whole, split, split), out_shardings=whole
        )
        self._count_correct_of_seeds = jax.jit(jax.vmap(self._num_correct, (0, None, None)))

    @property
    def logit_memory_bytes(self) -> int:
        """What SAF keeps besides the model."""
        memory = jax.eval_shape(lambda: self._new_trajectory("saf", None))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(memory))

    def new_state(self, method: str, *seeds: int) -> TrainState:
        """The state before the first step, whole on every device.

        The seed is data: it is in the arrays of the state alone, and the functions of the
        optimizer are those of the method's first state, so that one compiled step serves all.
        """
        states = [self._new_state(method, seed) for seed in seeds]
        if len(states) == 1:
            return devices.replicate(self.mesh, states[0])
        return devices.replicate(self.mesh, jax.tree.map(lambda *x: jnp.stack(x), *states))

    def _new_state(self, method: str, seed: int) -> TrainState:
        optimizer = make_method(method, self.config, self.total_steps, seed)
        params_key, key = jax.random.split(jax.random.PRNGKey(seed))
        variables = self._init(params_key, self._one_image)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        state = TrainState.create(
            apply_fn=self.model.apply,
            params=params,
            tx=optimizer,
            batch_stats=batch_stats,
            key=key,
            trajectory=self._new_trajectory(method, params),
            ema=ema.start(params, batch_stats) if self.config.ema_decay else None,
        )
        return state.replace(
            step=jnp.zeros([], jnp.int32), tx=self._optimizers.setdefault(method, optimizer)
        )

    def _new_trajectory(self, method: str, params: Any) -> trajectory.Trajectory:
        batch_shape = (self.config.batch_size, *self._one_image.shape[1:])
        num_examples = len(self.data.train_images)
        return trajectory.start(method, params, batch_shape, num_examples, self.data.num_classes)

    def compile_step(self, method: str, num_seeds: int = 1) -> Callable:
        """The train step, compiled now, so that no compilation falls into the measured time."""
        whole, split = devices.whole(self.mesh), devices.split(self.mesh)
        parts = NUM_MICROBATCHES if method in MICROBATCHED else 1
        train_step = functools.partial(
            self.train_step, measure=method not in UNMEASURED, num_microbatches=parts
        )
        jitted = jax.jit(
            train_step if num_seeds == 1 else jax.vmap(train_step),
            in_shardings=(whole, split, split, split) if num_seeds == 1 else None,
            out_shardings=whole if num_seeds == 1 else None,
            donate_argnums=0,
        )
        shape = (self.config.batch_size // jax.process_count(),)
        index = np.zeros(shape if num_seeds == 1 else (num_seeds, *shape), np.int32)
        images = np.zeros((*index.shape, *self.data.train_images.shape[1:]), np.uint8)
        state = self.new_state(method, *range(num_seeds))
        compiled = jitted.lower(state, *self.batch(images, index, index)).compile()
        memory = compiled.memory_analysis()
        if memory is not None:
            self.peak_bytes[method, num_seeds] = (
                memory.argument_size_in_bytes
                + memory.output_size_in_bytes
                + memory.temp_size_in_bytes
                - memory.alias_size_in_bytes
            )
        return compiled

    def batch(self, images: np.ndarray, labels: np.ndarray, index: np.ndarray) -> Any:
        """What the train step takes of the training examples ``index``.

        Of several processes each gives the examples of its own devices.
        """
        return devices.join(self.mesh, (images, labels, index.astype(np.int32)))

    def train_step(
        self,
        state: TrainState,
        images: jax.Array,
        labels: jax.Array,
        index: jax.Array,
        *,
        measure: bool = True,
        num_microbatches: int = 1,
    ) -> tuple[TrainState, jax.Array]:
        """One step of any method. Returns the next state and the values of STEP_METRICS.

        ``index`` says which examples of the training set these are, ``measure`` whether the method
        is asked for all of its metrics, ``num_microbatches`` of how many it gets the gradients.
        """
        epoch = state.step // self.steps_per_epoch
        dropout_key, augment_key = _keys(state, state.step)
        batch = step.Batch(self._inputs(images, augment_key), labels, index)
        if num_microbatches > 1:
            value_and_grad = in_microbatches.value_and_grad(self._losses_fn, num_microbatches)
        else:
            value_and_grad = accumulation.in_parts(
                jax.value_and_grad(
                    trajectory.loss_with_term(self._losses_fn, state.trajectory, epoch),
                    has_aux=True,
                ),
                self.config.accumulate,
            )
        new_state, loss, logits, grads = step.train_step(
            state,
            batch,
            dropout_key,
            self._losses_fn,
            value_and_grad,
            measure=measure,
            **trajectory.extra_args(
                state, batch, dropout_key, _keys(state, state.step - 1)[0], value_and_grad
            ),
        )
        new_state = new_state.replace(
            trajectory=trajectory.update(state.trajectory, new_state.params, batch, epoch, logits)
        )
        if state.ema is not None:
            of_weights = new_state.params, new_state.batch_stats, state.step
            average = ema.update(state.ema, *of_weights, self.config.ema_decay)
            new_state = new_state.replace(ema=average)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        return new_state, _step_metrics(loss, accuracy, grads, new_state.opt_state, measure)

    def accuracy(self, state: TrainState, images: Images, labels: np.ndarray) -> np.ndarray:
        """Share of right predictions, for each seed, with BatchNorm's running statistics."""
        params, batch_stats = (state.params, state.batch_stats) if state.ema is None else state.ema
        variables = {"params": params, "batch_stats": batch_stats}
        num_seeds = np.shape(state.step)
        count = self._count_correct_of_seeds if num_seeds else self._count_correct
        size = -(-_EVALUATION_BATCH // self.mesh.size) * self.mesh.size
        correct = np.zeros(num_seeds, int)
        batches = pipeline.batches(
            images,
            pipeline.InOrder(len(labels), size, devices.own_rows(size)),
            0,
            -(-len(labels) // size),
            self.config.input_workers,
        )
        for index, some_images in batches:
            missing = size // jax.process_count() - len(index)  # keeps one compiled shape
            some_images = np.pad(some_images, ((0, missing), (0, 0), (0, 0), (0, 0)))
            some_labels = np.pad(labels[index], (0, missing), constant_values=-1)
            correct += np.asarray(
                count(variables, *devices.join(self.mesh, (some_images, some_labels)))
            )
        return correct / len(labels)

    def _inputs(self, images, augment_key):
        images = images.astype(jnp.float32)
        if self.config.augment:
            images = augment.augment(self.config.augment, augment_key, images, self.data.mean)
        return self._normalize(images)

    def _num_correct(self, variables, images, labels):
        logits: Any = self.model.apply(
            variables, self._normalize(images.astype(jnp.float32)), is_training=False
        )
        return jnp.sum(jnp.argmax(logits, -1) == labels)

    def _normalize(self, images):
        return (images - self.data.mean) / self.data.std


def _check_batch(config: Config, num_examples: int, num_devices: int) -> None:
    size = config.batch_size
    if size > num_examples:
        raise ConfigError(f"--batch-size {size} is more than the {num_examples} training images")
    if config.seeds_at_once > 1 and num_devices > 1:
        raise ConfigError(f"--seeds-at-once is for one device, not {num_devices}")
    if size % (config.accumulate * num_devices):
        parts = f" times --accumulate {config.accumulate}" if config.accumulate > 1 else ""
        raise ConfigError(f"--batch-size {size} is no multiple of the {num_devices} devices{parts}")


def _keys(state: TrainState, step: int | jax.Array) -> jax.Array:
    """The keys of dropout and of augmentation in a step."""
    return jax.random.split(jax.random.fold_in(state.key, step))


def _step_metrics(loss, accuracy, grads, opt_state, measure) -> jax.Array:
    """The values of STEP_METRICS in one array, NaN where the method or the step has none."""
    values = {"loss": loss, "accuracy": accuracy}
    try:
        link = arsam_jax.get_state(opt_state)
    except ValueError:  # a method without a sharpness-aware link, such as SGD
        values |= {"grad_norm": optax.tree.norm(grads), "sampled": 0.0}
    else:
        of_sampled_steps = {"ratio": getattr(link.sampling, "ratio", jnp.nan)}
        if measure:
            values["grad_norm"] = link.metrics.grad_norm
            for name in ("perturbed_grad_norm", "correction_norm", "cosine"):
                of_sampled_steps[name] = getattr(link.metrics, name)
        values |= {
            name: jnp.where(link.metrics.sampled, value, jnp.nan)
            for name, value in of_sampled_steps.items()
        }
        values["sampled"] = link.metrics.sampled
        values["probability"] = getattr(link.sampling, "probability", jnp.nan)
    return jnp.stack([jnp.asarray(values.get(n, jnp.nan), jnp.float32) for n in STEP_METRICS])
