"""The networks of the tasks. Their initial values depend on the names of their layers."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from examples.language.network import Transformer

NUM_CLASSES = 10
WINDOW = 32  # bytes that the language model sees


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


class NormalizedMLP(nn.Module):
    """Dense layers with LayerNorm and ReLU."""

    widths: tuple[int, ...]
    outputs: int = NUM_CLASSES

    @nn.compact
    def __call__(self, x, train=True):
        del train
        for width in self.widths:
            x = nn.relu(nn.LayerNorm()(nn.Dense(width)(x)))
        return nn.Dense(self.outputs)(x)


class ResNet(nn.Module):
    """A stem, two residual blocks of 16 and 32 channels with BatchNorm, and a global mean."""

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


class GroupCNN(nn.Module):
    """Two convolutions with GroupNorm."""

    @nn.compact
    def __call__(self, x, train=True):
        del train
        for features, strides in ((16, 1), (32, 2)):
            x = nn.Conv(features, (3, 3), strides, use_bias=False)(x)
            x = nn.relu(nn.GroupNorm(num_groups=4)(x))
        return nn.Dense(NUM_CLASSES)(x.mean((1, 2)))


class VisionTransformer(nn.Module):
    """Attention and MLP blocks with LayerNorm first on square patches; mean over the tokens."""

    patch: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, x, train=True):
        del train
        x = _patches(x, self.patch)
        x = nn.Dense(self.width, name="Conv_0")(x)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:])[None]
        for _ in range(self.depth):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
            y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(NUM_CLASSES)(nn.LayerNorm()(x).mean(1))


class Attention(nn.Module):
    """Attention and MLP blocks on pieces of a signal (batch, length, channels)."""

    piece: int = 4
    width: int = 32
    depth: int = 2
    heads: int = 2

    @nn.compact
    def __call__(self, x, train=True):
        del train
        x = nn.Dense(self.width)(x.reshape(len(x), x.shape[1] // self.piece, -1))
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:])[None]
        for _ in range(self.depth):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
            x = x + _two_layers(nn.LayerNorm()(x), 4)
        return nn.Dense(NUM_CLASSES)(nn.LayerNorm()(x).mean(1))


class Mixer(nn.Module):
    """MLP-Mixer (arXiv 2105.01601)."""

    patch: int = 7
    width: int = 32
    depth: int = 2

    @nn.compact
    def __call__(self, x, train=True):
        del train
        x = nn.Dense(self.width)(_patches(x, self.patch))
        for _ in range(self.depth):
            x = x + _two_layers(nn.LayerNorm()(x).swapaxes(1, 2), 2).swapaxes(1, 2)
            x = x + _two_layers(nn.LayerNorm()(x), 4)
        return nn.Dense(NUM_CLASSES)(nn.LayerNorm()(x).mean(1))


class Recurrent(nn.Module):
    """A GRU along the rows of an image. Its last state gives the class."""

    width: int = 48

    @nn.compact
    def __call__(self, x, train=True):
        del train
        x = x.reshape(*x.shape[:2], -1)
        states: Any = nn.RNN(nn.GRUCell(self.width))(x)
        return nn.Dense(NUM_CLASSES)(states[:, -1])


class TextCNN(nn.Module):
    """Embedded bytes, a convolution over 5 places and the maximum over places (arXiv 1408.5882)."""

    width: int = 16
    features: int = 48

    @nn.compact
    def __call__(self, x, train=True):
        del train
        x = nn.Embed(256, self.width)(x)
        places = [x[:, start : x.shape[1] - 4 + start] for start in range(5)]
        x = nn.relu(nn.Dense(self.features)(jnp.concatenate(places, -1))).max(1)
        return nn.Dense(NUM_CLASSES)(nn.relu(nn.Dense(self.features)(x)))


class LanguageModel(nn.Module):
    """A transformer of two blocks over bytes."""

    @nn.compact
    def __call__(self, x, train=True):
        return Transformer(width=32, depth=2, heads=2, length=WINDOW)(x, is_training=train)


def _patches(x: Any, size: int) -> Any:
    """Images (batch, height, width, channels) as (batch, patches, values of a patch)."""
    batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3)
    return x.reshape(batch, rows * columns, -1)


def _two_layers(x: Any, factor: int) -> Any:
    dense = functools.partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform())
    return dense(x.shape[-1])(nn.gelu(dense(factor * x.shape[-1])(x)))
