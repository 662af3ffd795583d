"""Trains an image classifier with several methods, and compares accuracy and cost.

python -m examples.classification                          handwritten digits, 40 % label noise
python -m examples.classification --method sam arsam --seeds 0 1 --alpha 0.4
python -m examples.classification --list                   all rows: named settings
python -m examples.classification --row table3/cifar100_wrn28_10_arsam      a row of the paper
python -m examples.classification --row cifar10 --help     the settings of a row
python -m examples.classification --row cifar10 --smoke    tries them without the data
python -m examples.classification --resume                 after an interruption
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from examples.classification import augment, datasets, models
from examples.classification.datasets import Dataset
from examples.classification.options import ROWS, Options, check, published
from examples.classification.step import (
    Batch,
    TrainState,
    make_losses_fn,
    start_trajectory,
    train_step,
)
from examples.common import comparison, image_sets
from examples.common.errors import ConfigError

_EVALUATION_BATCH = 500


class Classification(comparison.Task):
    """The task, see ``comparison.Task``."""

    measures = {"accuracy": ("accuracy (%)", "{:.2f}")}  # noqa: RUF012

    def __init__(self, options: Options, dataset: Dataset | None = None):
        check(options)
        self.options = options
        self.data = dataset or datasets.load(options)
        self.num_examples = len(self.data.train_labels)
        self._labels: dict[int, np.ndarray] = {}
        image_shape = self.data.train_images.shape[1:]
        self._one_image = np.zeros((1, *image_shape), np.float32)
        try:
            self.model = models.make_model(
                options.model,
                image_shape[0],
                self.data.num_classes,
                width=options.width,
                dropout=options.dropout,
                dtype=options.dtype,
            )
            self._init = jax.jit(lambda key, x: self.model.init(key, x, is_training=False))
            shapes = jax.eval_shape(self._init, jax.random.PRNGKey(0), self._one_image)
        except ValueError as error:
            raise ConfigError(f"--model {options.model}: {error}") from error
        self.num_params = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        self._losses_fn = make_losses_fn(self.model.apply)
        self._count_correct = jax.jit(self._num_correct)

    @property
    def description(self) -> str:
        options, data = self.options, self.data
        shape = "×".join(map(str, data.train_images.shape[1:]))
        held_out = "validation" if options.validation else "test"
        return (
            f"{options.dataset}: {self.num_examples:,} training and"
            f" {len(data.held_out_labels):,} {held_out} images of {shape}; {options.model} with"
            f" {self.num_params:,} parameters{published(options.row)}"
        )

    def new_state(self, tx: optax.GradientTransformation, seed: int) -> TrainState:
        params_key, key = jax.random.split(jax.random.PRNGKey(seed))
        variables: Any = self._init(params_key, self._one_image)
        return TrainState.create(
            apply_fn=self.model.apply,
            params=variables["params"],
            tx=tx,
            batch_stats=variables.get("batch_stats", {}),
            key=key,
        )

    def prepare(self, state: TrainState, method: str) -> TrainState:
        trajectory = start_trajectory(
            method, state.params, self.num_examples, self.data.num_classes
        )
        return state.replace(method=method, trajectory=trajectory)

    def batch(self, index: np.ndarray, step: int, seed: int) -> Any:
        del step  # the images are augmented on the device
        labels = self._noisy_labels(seed)[index]
        return Batch(self.data.train_images[index], labels, index.astype(np.int32))

    def train_step(
        self, state: TrainState, batch: Batch, previous: Batch
    ) -> tuple[TrainState, jax.Array]:
        options = self.options
        key, batch = self._augmented(state, batch, state.step)
        previous_key, previous = self._augmented(state, previous, jnp.maximum(state.step - 1, 0))
        return train_step(
            state,
            batch,
            previous,
            (key, previous_key),
            self._losses_fn,
            epoch=state.step // (self.num_examples // options.batch_size),
            num_parts=options.accumulate,
            num_microbatches=options.microbatches,
        )

    def evaluate(self, state: TrainState) -> dict[str, float]:
        images, labels = self.data.held_out_images, self.data.held_out_labels
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        counts = []
        for start in range(0, len(labels), _EVALUATION_BATCH):
            rows = slice(start, start + _EVALUATION_BATCH)
            counts.append(self._count_correct(variables, images[rows], labels[rows]))
        return {"accuracy": 100 * sum(map(int, counts)) / len(labels)}

    def finish(self, state: TrainState, folder: Path) -> dict[str, float]:
        del folder
        return self.evaluate(state)

    def _noisy_labels(self, seed: int) -> np.ndarray:
        if seed not in self._labels:
            self._labels[seed] = image_sets.add_symmetric_noise(
                self.data.train_labels,
                self.options.label_noise,
                self.data.num_classes,
                image_sets.noise_rng(seed),
            )
        return self._labels[seed]

    def _augmented(self, state: TrainState, batch: Batch, at: ArrayLike) -> tuple[jax.Array, Batch]:
        """The key of dropout in a step, and its batch as the network takes it."""
        dropout_key, augment_key = jax.random.split(jax.random.fold_in(state.key, at))
        images = batch.images.astype(jnp.float32)
        if self.options.augment:
            images = augment.augment(self.options.augment, augment_key, images, self.data.mean)
        return dropout_key, batch._replace(images=self._normalized(images))

    def _normalized(self, images):
        return (images - self.data.mean) / self.data.std

    def _num_correct(self, variables, images, labels):
        inputs = self._normalized(images.astype(jnp.float32))
        logits: Any = self.model.apply(variables, inputs, is_training=False)
        return jnp.sum(jnp.argmax(logits, -1) == labels)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return comparison.main(Options, Classification, "classification", arguments, ROWS)


if __name__ == "__main__":
    sys.exit(main())
