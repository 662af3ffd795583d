"""One train step for every method, and the evaluation, both on the device."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax
import arsam_jax.flax
from arsam_jax.trajectory import MESA_DECAY, LogitMemory, mesa_loss
from examples.classification.config import Config, ConfigError
from examples.classification.data import augment, pipeline
from examples.classification.data.images import Images
from examples.classification.data.sets import Dataset
from examples.classification.methods import UNMEASURED, make_method
from examples.classification.small_networks import make_model
from examples.common import devices

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


class MovingAverage(NamedTuple):
    """The averaged weights of MESA."""

    params: Any


class PreviousBatch(NamedTuple):
    """The images and labels of the step before, as the model saw them, for SAMPa."""

    images: Any
    labels: Any


class Ema(NamedTuple):
    """What is evaluated with --ema-decay."""

    params: Any
    batch_stats: Any


class TrainState(arsam_jax.flax.TrainState):
    """Also holds the BatchNorm statistics, the key of dropout and augmentation, and averages.

    The trajectory is what SAF (a memory of logits) and MESA (averaged weights) compare with, and
    the batch that SAMPa looks at once more.
    """

    batch_stats: Any
    key: jax.Array
    trajectory: LogitMemory | MovingAverage | PreviousBatch | None
    ema: Ema | None


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
        size = config.batch_size
        self.steps_per_epoch = len(dataset.train_images) // size
        if not self.steps_per_epoch:
            raise ConfigError(
                f"--batch-size {size} is more than the {len(dataset.train_images)} training images"
            )
        self.total_steps = config.epochs * self.steps_per_epoch
        self.mesh = devices.make_mesh(config.devices)
        if config.seeds_at_once > 1 and self.mesh.size > 1:
            raise ConfigError(f"--seeds-at-once is for one device, not {self.mesh.size}")
        if size % (config.accumulate * self.mesh.size):
            parts = f" times --accumulate {config.accumulate}" if config.accumulate > 1 else ""
            raise ConfigError(
                f"--batch-size {size} is no multiple of the {self.mesh.size} devices{parts}"
            )
        try:
            self.model = make_model(
                config.model,
                dataset.train_images.shape[1],
                dataset.num_classes,
                width=config.width,
                depth=config.depth,
                dropout=config.dropout,
                dtype=config.dtype,
            )
            self._one_image = np.zeros((1, *dataset.train_images.shape[1:]), np.float32)
            self._init = jax.jit(lambda key, x: self.model.init(key, x, is_training=False))
            shapes = jax.eval_shape(self._init, jax.random.PRNGKey(0), self._one_image)
        except ValueError as error:
            raise ConfigError(f"--model {config.model}: {error}") from error
        self.num_params = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
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
        ema = jax.tree.map(jnp.copy, Ema(params, batch_stats)) if self.config.ema_decay else None
        state = TrainState.create(
            apply_fn=self.model.apply,
            params=params,
            tx=optimizer,
            batch_stats=batch_stats,
            key=key,
            trajectory=self._new_trajectory(method, params),
            ema=ema,
        )
        return state.replace(
            step=jnp.zeros([], jnp.int32), tx=self._optimizers.setdefault(method, optimizer)
        )

    def _new_trajectory(
        self, method: str, params: Any
    ) -> LogitMemory | MovingAverage | PreviousBatch | None:
        if method == "saf":
            return LogitMemory.create(len(self.data.train_images), self.data.num_classes)
        if method == "mesa":
            return MovingAverage(jax.tree.map(jnp.copy, params))
        if method == "sampa":
            size = self.config.batch_size
            images = jnp.zeros((size, *self._one_image.shape[1:]), jnp.float32)
            return PreviousBatch(images, jnp.zeros(size, jnp.int32))
        return None

    def compile_step(self, method: str, num_seeds: int = 1) -> Callable:
        """The train step, compiled now, so that no compilation falls into the measured time."""
        whole, split = devices.whole(self.mesh), devices.split(self.mesh)
        train_step = functools.partial(self._train_step, measure=method not in UNMEASURED)
        step = jax.jit(
            train_step if num_seeds == 1 else jax.vmap(train_step),
            in_shardings=(whole, split, split, split) if num_seeds == 1 else None,
            out_shardings=whole if num_seeds == 1 else None,
            donate_argnums=0,
        )
        shape = (self.config.batch_size // jax.process_count(),)
        index = np.zeros(shape if num_seeds == 1 else (num_seeds, *shape), np.int32)
        images = np.zeros((*index.shape, *self.data.train_images.shape[1:]), np.uint8)
        state = self.new_state(method, *range(num_seeds))
        compiled = step.lower(state, *self.batch(images, index, index)).compile()
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

    def _train_step(
        self,
        state: TrainState,
        images: jax.Array,
        labels: jax.Array,
        index: jax.Array,
        *,
        measure: bool = True,
    ) -> tuple[TrainState, jax.Array]:
        """One step of any method. Returns the next state and the values of STEP_METRICS.

        ``index`` says which examples of the training set these are, ``measure`` whether the method
        is asked for all of its metrics.
        """
        config = self.config
        dropout_key, augment_key = self._keys(state, state.step)
        images = images.astype(jnp.float32)
        if config.augment:
            images = augment.augment(config.augment, augment_key, images, self.data.mean)
        images = self._normalize(images)
        epoch = state.step // self.steps_per_epoch

        def forward(params, batch_stats, batch, key):
            images, labels = batch
            outputs: Any = state.apply_fn(
                {"params": params, "batch_stats": batch_stats},
                images,
                is_training=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            logits, new_variables = outputs
            logits = logits.astype(jnp.float32)
            if config.label_smoothing:
                targets = jax.nn.one_hot(labels, self.data.num_classes, dtype=jnp.float32)
                targets = optax.smooth_labels(targets, config.label_smoothing)
                losses = optax.softmax_cross_entropy(logits, targets)
            else:
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses, logits, new_variables.get("batch_stats", {})

        def trajectory_term(logits, batch_stats, batch, index, key):
            match state.trajectory:
                case LogitMemory() as memory:
                    return memory.loss(index, epoch, logits)
                case MovingAverage(params):
                    _, past_logits, _ = forward(params, batch_stats, batch, key)
                    return mesa_loss(past_logits, logits, epoch)
            return 0

        def loss_fn(params, batch_stats, batch, index, key):
            losses, logits, new_stats = forward(params, batch_stats, batch, key)
            term = trajectory_term(logits, batch_stats, batch, index, key)
            return losses.mean() + term, (logits, new_stats)

        def value_and_grad(params, batch=(images, labels), key=dropout_key):
            value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
            if config.accumulate == 1:
                return value_and_grad(params, state.batch_stats, batch, index, key)
            return _accumulated(
                value_and_grad, config.accumulate, params, state.batch_stats, batch, index, key
            )

        def previous_grad_fn(params):
            assert isinstance(state.trajectory, PreviousBatch)
            is_first = state.step == 0
            previous = jax.tree.map(
                lambda now, before: jnp.where(is_first, now, before),
                (images, labels, dropout_key),
                (*state.trajectory, self._keys(state, state.step - 1)[0]),
            )
            return value_and_grad(params, previous[:2], previous[2])[1]

        (loss, (logits, batch_stats)), grads = value_and_grad(state.params)
        new_state = state.apply_gradients(
            grads=grads,
            batch_stats=batch_stats,  # of the clean pass: the perturbed one's are dropped
            # What a sharpness-aware method may ask for; plain SGD ignores it.
            grad_fn=lambda params: value_and_grad(params)[1],
            previous_grad_fn=previous_grad_fn,
            example_loss_fn=lambda params, batch: forward(
                params, state.batch_stats, batch, dropout_key
            )[0],
            batch=(images, labels),
            example_index=index,
            measure=measure,
        )
        match state.trajectory:
            case LogitMemory() as memory:
                new_state = new_state.replace(trajectory=memory.write(index, epoch, logits))
            case MovingAverage(params):
                average = optax.incremental_update(new_state.params, params, 1 - MESA_DECAY)
                new_state = new_state.replace(trajectory=MovingAverage(average))
            case PreviousBatch():
                new_state = new_state.replace(trajectory=PreviousBatch(images, labels))
        if state.ema is not None:
            # Short while there are few steps to average, as in TensorFlow.
            decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
            current = Ema(new_state.params, new_state.batch_stats)
            new_state = new_state.replace(
                ema=jax.tree.map(
                    lambda old, new: decay * old + (1 - decay) * new, state.ema, current
                )
            )
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

    @staticmethod
    def _keys(state, step):
        """The keys of dropout and augmentation of a step."""
        return jax.random.split(jax.random.fold_in(state.key, step))

    def _num_correct(self, variables, images, labels):
        logits: Any = self.model.apply(
            variables, self._normalize(images.astype(jnp.float32)), is_training=False
        )
        return jnp.sum(jnp.argmax(logits, -1) == labels)

    def _normalize(self, images):
        return (images - self.data.mean) / self.data.std


def _accumulated(value_and_grad, num_parts, params, batch_stats, batch, index, key):
    """``value_and_grad`` of a batch, part after part; only one has its activations in memory.

    A part is every ``num_parts``-th example, so that each device has its share of it.
    """

    def split(x):
        return jnp.moveaxis(x.reshape(-1, num_parts, *x.shape[1:]), 1, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    def one_part(carry, part):
        batch_stats, loss, grads = carry
        i, batch, index = part
        (more_loss, (logits, batch_stats)), more_grads = value_and_grad(
            params, batch_stats, batch, index, jax.random.fold_in(key, i)
        )
        return (batch_stats, loss + more_loss, jax.tree.map(jnp.add, grads, more_grads)), logits

    start = (batch_stats, jnp.zeros([]), jax.tree.map(jnp.zeros_like, params))
    parts = (jnp.arange(num_parts), *jax.tree.map(split, (batch, index)))
    # XLA:CPU is slow at convolutions inside loops.
    unroll = jax.default_backend() == "cpu"
    (batch_stats, loss, grads), logits = jax.lax.scan(one_part, start, parts, unroll=unroll)
    grads = jax.tree.map(lambda x: x / num_parts, grads)
    return (loss / num_parts, (join(logits), batch_stats)), grads


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
