"""The networks whose steps are timed."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.accuracy.networks import MLP
from examples.common import networks as models
from examples.language.network import VOCABULARY, Transformer

NUM_CLASSES = 10


class CNN(nn.Module):
    """Three convolutions with BatchNorm."""

    @nn.compact
    def __call__(self, x, *, is_training=True):
        for features, strides in ((16, 1), (32, 2), (32, 2)):
            x = nn.Conv(features, (3, 3), strides=strides, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not is_training)(x))
        return nn.Dense(NUM_CLASSES)(x.mean((1, 2)))


class ManyArrays(nn.Module):
    """Layers of three small arrays each, where passes over the parameters dominate."""

    layers: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(x.reshape(len(x), -1))
        for _ in range(self.layers):
            x = x + nn.Dense(16)(nn.tanh(nn.LayerNorm(use_bias=False)(x)))
        return nn.Dense(NUM_CLASSES)(x)


class ResNet50(nn.Module):
    """ResNet-50 (arXiv 1512.03385) with a 3×3 stem of stride 1, for images of 32 pixels.

    23,520,842 parameters at width 64.
    """

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, is_training=True):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not is_training, momentum=0.9, dtype=self.dtype
        )
        x = nn.relu(norm()(conv(self.width, (3, 3))(x)))
        for stage, blocks in enumerate((3, 4, 6, 3)):
            width = self.width * 2**stage
            for block in range(blocks):
                strides = 2 if stage and not block else 1
                y = nn.relu(norm()(conv(width, (1, 1))(x)))
                y = nn.relu(norm()(conv(width, (3, 3), strides)(y)))
                y = norm()(conv(4 * width, (1, 1))(y))
                if x.shape != y.shape:
                    x = norm()(conv(4 * width, (1, 1), strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(NUM_CLASSES)(x.mean((1, 2), dtype=jnp.float32))


class Network(NamedTuple):
    """What is timed: a module on a batch.

    Attributes:
      module: takes inputs, and ``is_training`` unless ``arguments`` lacks it.
      shape: of one example. Tokens if it has one axis.
      batch_size: examples per step.
      base: the base optimizer, "sgd" with momentum or "adamw".
      arguments: keyword arguments of the module.
      rounds: interleaved rounds in which the steps are timed.
    """

    module: nn.Module
    shape: tuple[int, ...]
    batch_size: int
    base: str = "sgd"
    arguments: tuple[tuple[str, bool], ...] = ()
    rounds: int = 40

    def make_batch(self) -> tuple[jax.Array, jax.Array]:
        """Random inputs, and labels or next tokens."""
        key = jax.random.key(0)
        if len(self.shape) > 1:
            inputs = jax.random.normal(key, (self.batch_size, *self.shape))
            return inputs, jax.random.randint(key, (self.batch_size,), 0, NUM_CLASSES)
        text = jax.random.randint(key, (self.batch_size, self.shape[0] + 1), 0, VOCABULARY)
        return text[:, :-1], text[:, 1:]


TRAINING = (("is_training", True),)
SMALL, COLOUR = (28, 28, 1), (32, 32, 3)
GPT = Transformer(width=256, depth=12, heads=4, length=256)
GPT2_SMALL = Transformer(width=768, depth=12, heads=12, length=64)
CPU = {
    "mlp": Network(MLP((512, 512)), SMALL, 128),
    "cnn": Network(CNN(), SMALL, 64, arguments=TRAINING),
    "many_arrays": Network(ManyArrays(200), SMALL, 128),
    "gpt": Network(GPT, (256,), 1, "adamw", TRAINING, rounds=15),
    "gpt2_small": Network(GPT2_SMALL, (64,), 1, "adamw", TRAINING, rounds=10),
    "resnet50": Network(ResNet50(), COLOUR, 2, arguments=TRAINING, rounds=10),
}
VIT = models.VisionTransformer(NUM_CLASSES, patch_size=4, dtype=jnp.bfloat16)
ACCELERATOR = {
    "resnet18": Network(
        models.ResNet18(NUM_CLASSES, dtype=jnp.bfloat16), COLOUR, 256, arguments=TRAINING
    ),
    "vit": Network(VIT, COLOUR, 256, "adamw", TRAINING),
    "resnet50": Network(ResNet50(dtype=jnp.bfloat16), COLOUR, 256, arguments=TRAINING),
}
SMOKE = {
    "mlp": Network(MLP((8,)), SMALL, 4, rounds=2),
    "cnn": Network(CNN(), SMALL, 2, arguments=TRAINING, rounds=2),
}
