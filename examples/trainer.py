"""One train step for every method, and the evaluation, both on the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax
import arsam_jax.flax
from arsam_jax.trajectory import LogitMemory, trajectory_loss
from examples import augment, devices
from examples.config import Config, ConfigError
from examples.data import Dataset
from examples.methods import make_method
from examples.models import make_model

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
_MESA_DECAY, _MESA_START_EPOCH = 0.9995, 5


class MovingAverage(NamedTuple):
    """The averaged weights of MESA."""

    params: Any


class TrainState(arsam_jax.flax.TrainState):
    """Also holds the BatchNorm statistics, the key of dropout and augmentation, and a trajectory.

    The trajectory is what SAF (a memory of logits) and MESA (averaged weights) compare with.
    """

    batch_stats: Any
    key: jax.Array
    trajectory: LogitMemory | MovingAverage | None


class Trainer:
    """What the runs of a comparison share: the data, the model and the compiled functions."""

    def __init__(self, config: Config, dataset: Dataset):
        self.config = config
        self.data = dataset
        self.steps_per_epoch = len(dataset.train_images) // config.batch_size
        if not self.steps_per_epoch:
            raise ConfigError(
                f"--batch-size {config.batch_size} is more than the {len(dataset.train_images)}"
                " training images"
            )
        self.total_steps = config.epochs * self.steps_per_epoch
        self.mesh = devices.make_mesh(config.devices)
        if config.batch_size % self.mesh.size:
            raise ConfigError(
                f"--batch-size {config.batch_size} is no multiple of the {self.mesh.size} devices"
            )
        self.model = make_model(
            config.model,
            dataset.train_images.shape[1],
            dataset.num_classes,
            width=config.width,
            dropout=config.dropout,
        )
        self._one_image = dataset.train_images[:1].astype(np.float32)
        self._init = jax.jit(lambda key, x: self.model.init(key, x, is_training=False))
        whole, split = devices.whole(self.mesh), devices.split(self.mesh)
        self._count_correct = jax.jit(
            self._count_correct, in_shardings=(whole, split, split), out_shardings=whole
        )
        self._optimizers: dict[str, optax.GradientTransformation] = {}

    @property
    def num_params(self) -> int:
        variables = jax.eval_shape(self._init, jax.random.PRNGKey(0), self._one_image)
        return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    @property
    def logit_memory_bytes(self) -> int:
        """What SAF keeps besides the model."""
        memory = jax.eval_shape(lambda: self._new_trajectory("saf", None))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(memory))

    def new_state(self, method: str, seed: int) -> TrainState:
        """The state before the first step, whole on every device.

        The seed is data: it is in the arrays of the state alone, and the functions of the
        optimizer are those of the method's first state, so that one compiled step serves all.
        """
        optimizer = make_method(method, self.config, self.total_steps, seed)
        params_key, key = jax.random.split(jax.random.PRNGKey(seed))
        variables = self._init(params_key, self._one_image)
        state = TrainState.create(
            apply_fn=self.model.apply,
            params=variables["params"],
            tx=optimizer,
            batch_stats=variables["batch_stats"],
            key=key,
            trajectory=self._new_trajectory(method, variables["params"]),
        )
        state = state.replace(
            step=jnp.zeros([], jnp.int32), tx=self._optimizers.setdefault(method, optimizer)
        )
        return devices.replicate(self.mesh, state)

    def _new_trajectory(self, method: str, params: Any) -> LogitMemory | MovingAverage | None:
        if method == "saf":
            return LogitMemory.create(len(self.data.train_images), self.data.num_classes)
        if method == "mesa":
            return MovingAverage(jax.tree.map(jnp.copy, params))
        return None

    def compile_step(self, method: str) -> Callable:
        """The train step, compiled now, so that no compilation falls into the measured time."""
        whole, split = devices.whole(self.mesh), devices.split(self.mesh)
        step = jax.jit(
            self._train_step,
            in_shardings=(whole, split, split, split),
            out_shardings=whole,
            donate_argnums=0,
        )
        batch = self.batch(self.data.train_labels, np.arange(self.config.batch_size))
        return step.lower(self.new_state(method, seed=0), *batch).compile()

    def batch(self, labels: np.ndarray, index: np.ndarray) -> Any:
        """What the train step takes of the training examples ``index``, with these labels.

        Of several processes each gives the examples of its own devices.
        """
        own = devices.own_rows(index)
        return devices.join(
            self.mesh, (self.data.train_images[own], labels[own], own.astype(np.int32))
        )

    def _train_step(
        self, state: TrainState, images: jax.Array, labels: jax.Array, index: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        """One step of any method. Returns the next state and the values of STEP_METRICS.

        ``index`` says which examples of the training set these are.
        """
        dropout_key, augment_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        images = self._normalize(images)
        if self.config.augment:
            images = augment.crop_mirror_and_cutout(augment_key, images)

        def forward(params, batch):
            images, labels = batch
            outputs: Any = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                is_training=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            logits, new_variables = outputs
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses, logits, new_variables["batch_stats"]

        epoch = state.step // self.steps_per_epoch

        def trajectory_term(logits):
            match state.trajectory:
                case LogitMemory() as memory:
                    return memory.loss(index, epoch, logits)
                case MovingAverage(params):
                    _, past_logits, _ = forward(params, (images, labels))
                    term = trajectory_loss(past_logits, logits)
                    return jnp.where(epoch >= _MESA_START_EPOCH, term, 0)
            return 0

        def loss_fn(params):
            losses, logits, batch_stats = forward(params, (images, labels))
            return losses.mean() + trajectory_term(logits), (logits, batch_stats)

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        new_state = state.apply_gradients(
            grads=grads,
            batch_stats=batch_stats,  # of the clean pass: the perturbed one's are dropped
            # What a sharpness-aware method may ask for; plain SGD ignores it.
            grad_fn=lambda params: jax.grad(loss_fn, has_aux=True)(params)[0],
            example_loss_fn=lambda params, batch: forward(params, batch)[0],
            batch=(images, labels),
        )
        match state.trajectory:
            case LogitMemory() as memory:
                new_state = new_state.replace(trajectory=memory.write(index, epoch, logits))
            case MovingAverage(params):
                average = optax.incremental_update(new_state.params, params, 1 - _MESA_DECAY)
                new_state = new_state.replace(trajectory=MovingAverage(average))
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        return new_state, _step_metrics(loss, accuracy, grads, new_state.opt_state)

    def test_accuracy(self, state: TrainState) -> float:
        """Accuracy on the test (or validation) images, with BatchNorm's running statistics."""
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        images, labels = self.data.test_images, self.data.test_labels
        size = -(-_EVALUATION_BATCH // self.mesh.size) * self.mesh.size
        correct = 0
        for start in range(0, len(images), size):
            batch = slice(start, start + size)
            missing = max(0, start + size - len(images))  # keeps one compiled shape
            padded = (
                np.pad(images[batch], ((0, missing), (0, 0), (0, 0), (0, 0))),
                np.pad(labels[batch], (0, missing), constant_values=-1),
            )
            own = tuple(map(devices.own_rows, padded))
            correct += self._count_correct(variables, *devices.join(self.mesh, own))
        return float(correct) / len(images)

    def _count_correct(self, variables, images, labels):
        logits: Any = self.model.apply(variables, self._normalize(images), is_training=False)
        return jnp.sum(jnp.argmax(logits, -1) == labels)

    def _normalize(self, images):
        return (images.astype(jnp.float32) - self.data.mean) / self.data.std


def _step_metrics(loss, accuracy, grads, opt_state) -> jax.Array:
    """The values of STEP_METRICS in one array, NaN where the method or the step has none."""
    values = {"loss": loss, "accuracy": accuracy}
    try:
        link = arsam_jax.get_state(opt_state)
    except ValueError:  # a method without a sharpness-aware link, such as SGD
        values |= {"grad_norm": optax.tree.norm(grads), "sampled": 0.0}
    else:
        of_sampled_steps = {
            "ratio": getattr(link.sampling, "ratio", jnp.nan),
            "perturbed_grad_norm": link.metrics.perturbed_grad_norm,
            "correction_norm": link.metrics.correction_norm,
            "cosine": link.metrics.cosine,
        }
        values |= {
            name: jnp.where(link.metrics.sampled, value, jnp.nan)
            for name, value in of_sampled_steps.items()
        }
        values["grad_norm"] = link.metrics.grad_norm
        values["sampled"] = link.metrics.sampled
        values["probability"] = getattr(link.sampling, "probability", jnp.nan)
    return jnp.stack([jnp.asarray(values.get(n, jnp.nan), jnp.float32) for n in STEP_METRICS])
