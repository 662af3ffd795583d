"""Pose estimation: train a network that finds the joints of people with several methods.

python -m examples.pose                                                 drawn figures
python -m examples.pose --method base sam --seeds 0 1 2
python -m examples.pose --data MPII --network hrnet_w32 --image-size 256 ...    see README.md
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.common import batch_norm, comparison, settings, weights
from examples.common.pipeline import augmentation_rng
from examples.pose import data, evaluation, simcc
from examples.pose.figures import figures
from examples.pose.network import NETWORKS, torch_name

_EVALUATION_BATCH = 64
_HELD_OUT_FIGURES = 512
_DRAWN = 18
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pixels of ImageNet


@dataclasses.dataclass(frozen=True)
class Options(comparison.Options):
    """Train a network that finds the joints of people with several methods.

    A table, all numbers and figures are written to OUTPUT/NAME. Ctrl-C saves and stops, and
    --resume continues.
    """

    epochs: int = 15
    optimizer: str = "adamw"
    learning_rate: float = 2e-2
    weight_decay: float = 0.0
    rho: float = 0.06

    data: Path | None = None
    """Folder of MPII, see README.md. By default figures are drawn."""
    figures: int = 1280
    """Number of drawn figures for training."""
    swapped: float = 0.3
    """Share of these figures whose right and left joints are exchanged, in [0, 1)."""
    augmentation: bool = True
    """Train on crops of random scale and rotation, half of them mirrored."""
    network: str = "small"
    """small, hrnet_w32 or hrnet_w48."""
    image_size: int = 64
    """Pixels along a side of the input of the network, a multiple of 32."""
    targets: str = "gaussian"
    """Targets of SimCC: gaussian, or onehot with label smoothing."""
    weights: Path | None = None
    """File with initial weights of HRNet, .safetensors. The head is not read from it."""


class Pose(comparison.Task):
    """The task of pose estimation, see ``comparison.Task``."""

    measures = {  # noqa: RUF012
        "mean": ("PCKh@0.5", "{:.2f}"),
        "mean_strict": ("PCKh@0.1", "{:.2f}"),
        **{part: (part, "{:.1f}") for part in evaluation.PARTS},
    }

    def __init__(self, options: Options):
        _check(options)
        self.options = options
        if options.data is None:
            held_out = "validation" if options.validation else "test"
            self.train = figures("train", options.figures, swapped=options.swapped)
            self.held_out = figures(held_out, _HELD_OUT_FIGURES)
        else:
            self.train, self.held_out = data.mpii(options.data, validation=options.validation)
        self.num_examples = len(self.train)
        self.model = NETWORKS[options.network]
        self.weights = None if options.weights is None else weights.load(options.weights)
        self._predict = jax.jit(self._predicted)

    def new_state(self, tx: optax.GradientTransformation, seed: int) -> Any:
        image = jnp.zeros((1, self.options.image_size, self.options.image_size, 3))
        variables = self.model.init(jax.random.key(seed), image, is_training=False)
        if self.weights is not None:
            variables = weights.fill(variables, self.weights, torch_name)
        return batch_norm.TrainState.create(apply_fn=self.model.apply, tx=tx, **variables)

    def batch(self, index: np.ndarray, step: int, seed: int) -> data.Crops:
        rng = augmentation_rng(seed, step) if self.options.augmentation else None
        return data.crop(self.train, index, self.options.image_size, rng)

    def train_step(self, state: Any, batch: Any, previous: Any) -> tuple[Any, jax.Array]:
        def losses(params, crops):
            logits, changed = self.model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                _normalized(crops.images),
                is_training=True,
                mutable=["batch_stats"],
            )
            targets, visible = simcc.make_targets(
                self.options.targets, crops.joints, crops.visible, self.options.image_size
            )
            return simcc.losses(logits, targets, visible), changed["batch_stats"]

        return batch_norm.train_step(state, batch, previous, losses)

    def evaluate(self, state: Any) -> dict[str, float]:
        measures = self._measure(self._predict_all(state))
        return {name: measures[name] for name in ("mean", "mean_strict")}

    def finish(self, state: Any, folder: Path) -> dict[str, float]:
        predicted, size = self._predict_all(state), self.options.image_size
        some = np.arange(min(_DRAWN, len(predicted)))
        crops = data.crop(self.held_out, some, size)
        matrices, _ = data.crop_matrices(self.held_out, some, size)
        evaluation.draw(
            crops.images,
            predicted=data.transform(matrices, predicted[some]),
            joints=crops.joints,
            visible=crops.visible,
            file=folder / "poses.png",
        )
        return self._measure(predicted)

    def _measure(self, predicted: np.ndarray) -> dict[str, float]:
        people = self.held_out
        return evaluation.pckh(predicted, people.joints, people.visible, people.head_sizes)

    def _predict_all(self, state: Any) -> np.ndarray:
        """Predict the joints of all held-out people in pixels of their images, (n, 16, 2)."""
        size, count = self.options.image_size, len(self.held_out)
        parts = []
        for start in range(0, count, _EVALUATION_BATCH):
            # The last person fills up the last batch, so that all batches have one shape.
            index = np.minimum(np.arange(start, start + _EVALUATION_BATCH), count - 1)
            crops = data.crop(self.held_out, index, size)
            matrices, _ = data.crop_matrices(self.held_out, index, size)
            found = np.asarray(self._predict(state.params, state.batch_stats, crops.images))
            parts.append(data.transform(data.inverted(matrices), found))
        return np.concatenate(parts)[:count]

    def _predicted(self, params, batch_stats, images):
        """Predict joints in pixels of the crops, (batch, 16, 2)."""
        variables, images = {"params": params, "batch_stats": batch_stats}, _normalized(images)

        def logits_of(images) -> Any:
            return self.model.apply(variables, images, is_training=False)

        logits, mirrored_logits = logits_of(images), logits_of(images[:, :, ::-1])
        return simcc.positions(logits, mirrored_logits, self.options.targets)


def _normalized(images: jax.Array) -> jax.Array:
    """Turn bytes into the input of the network."""
    return (images / 255 - jnp.array(_MEAN)) / jnp.array(_DEVIATION)


def _check(options: Options) -> None:
    settings.require_known("network", (options.network,), NETWORKS)
    settings.require_known("targets", (options.targets,), simcc.TARGETS)
    settings.check_numbers(
        options, shares=("swapped",), positive=("figures", "image_size"), not_negative=()
    )
    settings.require(
        options.image_size % 32 == 0, f"--image-size {options.image_size} is not a multiple of 32"
    )


if __name__ == "__main__":
    sys.exit(comparison.main(Options, Pose, "pose"))
