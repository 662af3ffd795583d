"""The networks whose steps are timed."""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.accuracy.networks import MLP, ResNet
from examples.common import networks as models
from examples.language.network import VOCABULARY, Transformer

NUM_CLASSES = 10


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
    """What is timed: a module on a batch."""

    module: nn.Module  # takes inputs and the arguments below
    shape: tuple[int, ...]  # of one example; tokens if it has one axis
    batch_size: int
    base: str = "sgd"  # with momentum, or "adamw"
    arguments: tuple[tuple[str, bool], ...] = ()
    rounds: int = 40  # in which the steps are timed

    def make_batch(self) -> tuple[jax.Array, jax.Array]:
        """Random inputs, and labels or next tokens."""
        key = jax.random.key(0)
        if len(self.shape) > 1:
            inputs = jax.random.normal(key, (self.batch_size, *self.shape))
            return inputs, jax.random.randint(key, (self.batch_size,), 0, NUM_CLASSES)
        size = self.batch_size, math.prod(self.shape) + 1
        text = jax.random.randint(key, size, 0, VOCABULARY)
        return text[:, :-1], text[:, 1:]


TRAINING = (("is_training", True),)
SMALL, COLOUR = (28, 28, 1), (32, 32, 3)
RESNET = ResNet(stem=(3, 3), stem_strides=2, kernel=(3, 3))
GPT = Transformer(width=256, depth=12, heads=4, length=256)
GPT2_SMALL = Transformer(width=768, depth=12, heads=12, length=64)
CPU = {
    "mlp": Network(MLP((512, 512)), SMALL, 128),
    "cnn": Network(RESNET, SMALL, 64),
    "gpt": Network(GPT, (256,), 1, "adamw", TRAINING, rounds=12),
    "gpt2_small": Network(GPT2_SMALL, (64,), 1, "adamw", TRAINING, rounds=6),
    "resnet50": Network(ResNet50(), COLOUR, 2, arguments=TRAINING, rounds=6),
    "many_arrays": Network(ManyArrays(200), SMALL, 128),
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
    "cnn": Network(RESNET, SMALL, 2, rounds=2),
}
