"""Quantization: train a network with weights and activations of few bits, by LSQ.

python -m examples.quantization                                         digits, 4 bits
python -m examples.quantization --method base sam --seeds 0 1 2
python -m examples.quantization --through weights --name through_weights
python -m examples.quantization --dataset cifar10 --network resnet18 ...         see README.md
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax.flax
from examples.common import batch_norm, comparison, settings, weights
from examples.common.comparison.trainer import RESULT_FILE
from examples.common.errors import StoppedError
from examples.common.pipeline import Order
from examples.common.stopping import stop_on_signal
from examples.quantization import data, pictures
from examples.quantization.network import (
    NETWORKS,
    bins,
    make_network,
    quantized,
    quantized_layers,
    with_step_sizes,
    with_weights,
)
from examples.quantization.quantizer import positive

WEIGHTS_FILE = "weights.safetensors"
_EVALUATION_BATCH = 500


@dataclasses.dataclass(frozen=True)
class Options(comparison.Options):
    """Train a quantized network with several methods, starting from a float network.

    The float network of each seed is trained first, with the base optimizer, and saved in
    OUTPUT/NAME/float. A table, all numbers and figures are written to OUTPUT/NAME. Ctrl-C saves and
    stops, and --resume continues.
    """

    epochs: int = 30
    learning_rate: float = 0.01
    rho: float = 0.5

    dataset: str = "digits"
    """digits, fashion_mnist, cifar10 or cifar100."""
    data_files: Path | None = None
    """Folder of Fashion-MNIST's files, by default Debian's, or CIFAR's tar.gz (binary version)."""
    train_examples: int = 800
    """Number of training examples; 0: all."""
    noise: float = 0.4
    """Share of the training labels that are replaced by another class, in [0, 1)."""
    augment: bool = False
    """Train on images shifted by up to an eighth of their width, half of them mirrored."""
    network: str = "cnn"
    """cnn (small), resnet18 or mobilenet."""
    weight_bits: int = 4
    """Bits of the weights, 2 to 8. The first and the last layer have 8."""
    activation_bits: int = 4
    """Bits of the inputs of layers, 2 to 8. The first and the last layer have 8."""
    through: str = "quantized"
    """What a method perturbs: quantized, the weights after the quantizer (SAQ's case 3), or
    weights, the weights before it and the step sizes."""

    float_epochs: int = 15
    """Epochs of the float network."""
    float_learning_rate: float = 0.1
    """Learning rate of the float network."""
    weights: Path | None = None
    """File of a trained float network for all seeds, such as float/seed0/weights.safetensors of
    another comparison. With --validation, that comparison must have used --validation, too."""

    def impossible(self) -> dict[str, str]:
        if self.through == "weights":
            return {}
        return {"wsam": "its part after the optimizer cannot be pulled back. Use --through weights"}


class FloatNetwork(comparison.Task):
    """The task of training the float network that LSQ starts from, see ``comparison.Task``."""

    measures = {"accuracy": ("accuracy", "{:.2f}")}  # noqa: RUF012

    def __init__(self, options: Options, images: data.Images):
        self.options, self.images = options, images
        self.num_examples = len(images.train)
        self.model = make_network(options.network, images.num_classes)
        image = np.zeros((1, *images.train.shape[1:]), np.float32)  # NumPy starts no backend.
        self.init = jax.jit(lambda key: self.model.init(key, image, is_training=False))
        self._count_right = jax.jit(self._right)

    def new_state(self, tx: optax.GradientTransformation, seed: int) -> Any:
        variables = self.init(jax.random.key(seed))
        return batch_norm.TrainState.create(apply_fn=self.model.apply, tx=tx, **variables)

    def batch(self, index: np.ndarray, step: int, seed: int) -> data.Batch:
        images = self.images.train[index]
        if self.options.augment:
            images = data.crop_and_mirror(images, seed, step)
        return data.Batch(images, self.images.train_labels[index], index.astype(np.int32))

    def train_step(self, state: Any, batch: Any, previous: Any) -> tuple[Any, jax.Array]:
        seen, pull_back = self.seen_by_methods(state.params)

        def losses(params, batch):
            return self.losses(seen(params), state.batch_stats, batch)

        return batch_norm.train_step(state, batch, previous, losses, pull_back=pull_back)

    def evaluate(self, state: Any) -> dict[str, float]:
        return {"accuracy": self.accuracy(state.params, state.batch_stats)}

    def finish(self, state: Any, folder: Path) -> dict[str, float]:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        weights.save(folder / WEIGHTS_FILE, weights.to_torch(variables, ".".join))
        return self.evaluate(state)

    def seen_by_methods(self, params: Any) -> tuple[Callable[[Any], Any], Callable | None]:
        """Return the map from what a method sees to the network's parameters, and the pullback."""
        del params
        return self.seen_by_network, None

    def seen_by_network(self, params: Any) -> Any:
        return params

    def losses(self, params, batch_stats, batch):
        """Return the cross-entropy of each example, (batch,), and new BatchNorm statistics."""
        logits, changed = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            self.images.normalized(batch.images),
            is_training=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses, changed["batch_stats"]

    def accuracy(self, params, batch_stats) -> float:
        """Return the accuracy on held-out images in percent."""
        images, labels, right = self.images.held_out, self.images.held_out_labels, 0
        for start in range(0, len(labels), _EVALUATION_BATCH):
            some = slice(start, start + _EVALUATION_BATCH)
            right += int(self._count_right(params, batch_stats, images[some], labels[some]))
        return 100 * right / len(labels)

    def _right(self, params, batch_stats, images, labels):
        variables = {"params": self.seen_by_network(params), "batch_stats": batch_stats}
        pixels = self.images.normalized(images)
        logits: Any = self.model.apply(variables, pixels, is_training=False)
        return jnp.sum(logits.argmax(-1) == labels)


class Quantization(FloatNetwork):
    """The task of quantization, see ``comparison.Task``."""

    measures = {  # noqa: RUF012
        "accuracy": ("accuracy", "{:.2f}"),
        "float_accuracy": ("float", "{:.2f}"),
        "moved": ("% moved by ε", "{:.2f}"),
    }

    def __init__(self, options: Options):
        _check(options)
        images = data.load(
            options.dataset,
            options.data_files,
            train_examples=options.train_examples,
            noise=options.noise,
            validation=options.validation,
        )
        super().__init__(options, images)
        self.float_network = FloatNetwork(options, images)
        self.model = make_network(
            options.network, images.num_classes, quantized_layers(options.activation_bits)
        )
        self._with_step_sizes = jax.jit(self.with_step_sizes)
        self._moved = jax.jit(self.moved)

    def new_state(self, tx: optax.GradientTransformation, seed: int) -> Any:
        options, float_network = self.options, self.float_network
        file = options.weights or self._trained_float_network(seed)
        shapes = jax.eval_shape(float_network.init, jax.random.key(seed))
        variables = weights.fill(shapes, weights.load(file), ".".join)
        batch = self.batch(Order(self.num_examples, options.batch_size, seed)(0), 0, seed)
        return QuantizedState.create(
            apply_fn=self.model.apply,
            tx=tx,
            params=self._with_step_sizes(variables, batch.images),
            batch_stats=variables["batch_stats"],
            float_accuracy=jnp.array(float_network.accuracy(**variables)),
        )

    def finish(self, state: Any, folder: Path) -> dict[str, float]:
        pictures.draw(state.params, self.options.weight_bits, folder / "weights.png")
        index = np.arange(self.options.batch_size)
        moved = self._moved(state.params, state.batch_stats, self.batch(index, 0, 0))
        return {
            **self.evaluate(state),
            "float_accuracy": float(state.float_accuracy),
            "moved": 100 * float(moved),
        }

    def with_step_sizes(self, variables: Any, images: Any) -> Any:
        pixels, bits = self.images.normalized(images), self.options.weight_bits
        return with_step_sizes(self.model, variables, pixels, bits)

    def seen_by_network(self, params: Any) -> Any:
        return quantized(params, self.options.weight_bits)

    def seen_by_methods(self, params: Any) -> tuple[Callable[[Any], Any], Callable | None]:
        """See ``FloatNetwork``. Through the quantizer is case 3 of SAQ (arXiv 2111.12273).

        A method then sees the gradient with respect to the quantized weights, and ε is added after
        the quantizer. The step sizes of weights are not perturbed, but those of activations are,
        as in SAQ's code. The chain rule pulls the output of the method back to the weights and
        their step sizes.
        """
        if self.options.through == "weights":
            return self.seen_by_network, None
        at, pull_back = jax.vjp(self.seen_by_network, params)

        def add_perturbation(perturbed):
            return jax.tree.map(lambda q, new, old: q + (new - old), at, perturbed, params)

        return add_perturbation, lambda grads: pull_back(grads)[0]

    def moved(self, params: Any, batch_stats: Any, batch: data.Batch) -> jax.Array:
        """Return the share of the weights that SAM's ε of this batch moves to another integer.

        After the quantizer, it is the share that ε moves by more than half a step.
        """
        seen, _ = self.seen_by_methods(params)
        grads = jax.grad(lambda p: self.losses(seen(p), batch_stats, batch)[0].mean())(params)
        direction, _ = arsam_jax.ascent.normalize().update(grads, optax.EmptyState())
        perturbed = jax.tree.map(lambda p, d: p + self.options.rho * d, params, direction)
        bits = self.options.weight_bits
        if self.options.through == "weights":
            before, after = bins(params, bits), bins(perturbed, bits)
            is_moved = [before[name] != after[name] for name in before]
        else:
            is_moved = [
                jnp.abs(perturbed[name]["kernel"] - layer["kernel"])
                > positive(layer["weight_step"]) / 2
                for name, layer in with_weights(params).items()
            ]
        return jnp.mean(jnp.concatenate([x.ravel() for x in is_moved]))

    def _trained_float_network(self, seed: int) -> Path:
        """Return the file of the weights, after training them or finishing their training."""
        place = self.options.folder / "float" / f"seed{seed}"
        if not (place / RESULT_FILE).exists():
            print(f"Training the float network of seed {seed} first.")
            try:
                with stop_on_signal() as should_stop:
                    self._float_trainer.train(comparison.BASE, seed, place, should_stop=should_stop)
            except StoppedError as error:
                raise StoppedError(f"the float network, {error}") from error
        return place / WEIGHTS_FILE

    @functools.cached_property
    def _float_trainer(self) -> comparison.Trainer:
        options = dataclasses.replace(
            self.options,
            epochs=self.options.float_epochs,
            learning_rate=self.options.float_learning_rate,
        )
        return comparison.Trainer(options, self.float_network)


class QuantizedState(batch_norm.TrainState):
    """A state with the accuracy of the float network that training started from."""

    float_accuracy: Any = None


def _check(options: Options) -> None:
    settings.require_known("dataset", (options.dataset,), data.DATASETS)
    settings.require_known("network", (options.network,), NETWORKS)
    settings.require_known("through", (options.through,), ("quantized", "weights"))
    settings.check_numbers(
        options,
        shares=("noise",),
        positive=("float_epochs",),
        not_negative=("train_examples", "float_learning_rate"),
    )
    for name in ("weight_bits", "activation_bits"):
        bits = getattr(options, name)
        settings.require(2 <= bits <= 8, f"--{settings.flag(name)} must be 2 to 8, not {bits}")
    for method, why in options.impossible().items():
        settings.require(method not in options.method, f"--method {method}: {why}")


if __name__ == "__main__":
    sys.exit(comparison.main(Options, Quantization, "quantization"))
