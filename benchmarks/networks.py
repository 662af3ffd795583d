"""The networks that benchmarks/step_time.py times. BatchNorm takes the statistics of the batch."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from examples.common import networks as models

NUM_CLASSES = 10


class MLP(nn.Module):
    """Two hidden layers of 256."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for width in (256, 256):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(NUM_CLASSES)(x)


class CNN(nn.Module):
    """Three convolutions with BatchNorm."""

    @nn.compact
    def __call__(self, x):
        for features, strides in ((16, 1), (32, 2), (32, 2)):
            x = nn.Conv(features, (3, 3), strides=strides, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        return nn.Dense(NUM_CLASSES)(x.mean((1, 2)))


class ManyArrays(nn.Module):
    """200 small layers, 602 arrays: where passes over the arrays weigh most."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(x.reshape(len(x), -1))
        for _ in range(200):
            x = x + nn.Dense(16)(nn.tanh(nn.LayerNorm(use_bias=False)(x)))
        return nn.Dense(NUM_CLASSES)(x)


class ResNet18(models.ResNet18):
    """In training, unless said otherwise."""

    def __call__(self, x, *, is_training=True):
        return super().__call__(x, is_training=is_training)


class VisionTransformer(nn.Module):
    """Blocks of attention and MLP, LayerNorm first, on square patches; mean over the tokens."""

    patch: int
    width: int
    depth: int
    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
        batch, height, width, channels = x.shape
        rows, columns = height // self.patch, width // self.patch
        x = x.reshape(batch, rows, self.patch, columns, self.patch, channels).swapaxes(2, 3)
        x = dense(self.width)(x.reshape(batch, rows * columns, -1))
        position = self.param("position", nn.initializers.normal(0.02), x.shape[1:])
        x = x + position.astype(self.dtype)[None]
        for _ in range(self.depth):
            x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(norm()(x))
            x = x + dense(self.width)(nn.gelu(dense(4 * self.width)(norm()(x))))
        return nn.Dense(NUM_CLASSES)(norm()(x).mean(1).astype(jnp.float32))


class Network(NamedTuple):
    """A module and the shape of the images it takes."""

    module: nn.Module
    image: tuple[int, int, int]


SMALL, COLOUR = (28, 28, 1), (32, 32, 3)
NETWORKS = {
    "cnn": Network(CNN(), SMALL),
    "mlp": Network(MLP(), SMALL),
    "transformer": Network(VisionTransformer(patch=7, width=128, depth=1, heads=4), SMALL),
    "many_arrays": Network(ManyArrays(), SMALL),
    "resnet18": Network(ResNet18(NUM_CLASSES, dtype=jnp.bfloat16), COLOUR),
    "vit_s": Network(VisionTransformer(4, 384, depth=12, heads=6, dtype=jnp.bfloat16), COLOUR),
}
