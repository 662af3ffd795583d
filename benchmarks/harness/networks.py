"""The networks of the studies. BatchNorm and the like are in training, unless said otherwise."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from examples.common import networks as models

NUM_CLASSES = 10


class MLP(nn.Module):
    """Dense layers with ReLU."""

    widths: tuple[int, ...]
    outputs: int = NUM_CLASSES

    @nn.compact
    def __call__(self, x, train=True):
        del train
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_normal())(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.he_normal())(x)


class CNN(nn.Module):
    """Three convolutions with BatchNorm, which always takes the statistics of the batch."""

    @nn.compact
    def __call__(self, x):
        for features, strides in ((16, 1), (32, 2), (32, 2)):
            x = nn.Conv(features, (3, 3), strides=strides, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        return nn.Dense(NUM_CLASSES)(x.mean((1, 2)))


class ResNet(nn.Module):
    """Stem, residual blocks of 16 and 32 channels (the second with stride 2), global mean."""

    stem: tuple[int, ...]
    stem_strides: int
    kernel: tuple[int, ...]

    @nn.compact
    def __call__(self, x, train=True):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        conv = functools.partial(
            nn.Conv, use_bias=False, kernel_init=nn.initializers.he_normal(), padding="SAME"
        )
        x = nn.relu(norm()(conv(16, self.stem, self.stem_strides)(x)))
        for width, stride in ((16, 1), (32, 2)):
            y = nn.relu(norm()(conv(width, self.kernel, stride)(x)))
            y = norm()(conv(width, self.kernel)(y))
            if x.shape != y.shape:
                x = norm()(conv(width, [1] * len(self.kernel), stride)(x))
            x = nn.relu(x + y)
        x = x.mean(tuple(range(1, x.ndim - 1)))
        return nn.Dense(NUM_CLASSES, kernel_init=nn.initializers.he_normal())(x)


def patches(x: Any, size: int) -> Any:
    """Images (batch, height, width, channels) as square patches (batch, number, numbers of one)."""
    batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3)
    return x.reshape(batch, rows * columns, -1)


class VisionTransformer(nn.Module):
    """Blocks of attention and MLP, LayerNorm first, on square patches; mean over the tokens."""

    patch: int
    width: int
    depth: int
    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=True):
        del train
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
        x = patches(x, self.patch)
        # Named as the convolution it was, since initial values depend on the name.
        x = dense(self.width, name="Conv_0")(x)
        position = self.param("position", nn.initializers.normal(0.02), x.shape[1:])
        x = x + position.astype(self.dtype)[None]
        for _ in range(self.depth):
            x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(norm()(x))
            y = nn.gelu(dense(4 * self.width)(norm()(x)))
            x = x + dense(self.width)(y)
        return nn.Dense(NUM_CLASSES)(norm()(x).mean(1).astype(jnp.float32))


class ManyArrays(nn.Module):
    """Small layers of 3 arrays, and 4 arrays: where passes over the arrays weigh most."""

    layers: int = 200

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(x.reshape(len(x), -1))
        for _ in range(self.layers):
            x = x + nn.Dense(16)(nn.tanh(nn.LayerNorm(use_bias=False)(x)))
        return nn.Dense(NUM_CLASSES)(x)


class ResNet18(models.ResNet18):
    def __call__(self, x, *, is_training=True):
        return super().__call__(x, is_training=is_training)


class Network(NamedTuple):
    """A module and the shape of the images it takes."""

    module: nn.Module
    image: tuple[int, int, int]


SMALL, COLOUR = (28, 28, 1), (32, 32, 3)
NETWORKS = {  # that step_time times
    "cnn": Network(CNN(), SMALL),
    "mlp": Network(MLP((256, 256)), SMALL),
    "transformer": Network(VisionTransformer(patch=7, width=128, depth=1, heads=4), SMALL),
    "many_arrays": Network(ManyArrays(), SMALL),
    "resnet18": Network(ResNet18(NUM_CLASSES, dtype=jnp.bfloat16), COLOUR),
    "vit_s": Network(VisionTransformer(4, 384, depth=12, heads=6, dtype=jnp.bfloat16), COLOUR),
}
