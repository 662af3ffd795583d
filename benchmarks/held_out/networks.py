"""Networks of the second set of trainings, each of another kind."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from benchmarks.harness.networks import NUM_CLASSES, patches


class Recurrent(nn.Module):
    """A GRU along the second axis, its last state to the classes."""

    width: int = 48

    @nn.compact
    def __call__(self, x, train=True):
        del train
        x = x.reshape(*x.shape[:2], -1)
        states: Any = nn.RNN(nn.GRUCell(self.width))(x)
        return nn.Dense(NUM_CLASSES)(states[:, -1])


class TextCNN(nn.Module):
    """Embeddings of bytes, a convolution, the largest of each feature (arXiv 1408.5882)."""

    width: int = 16
    features: int = 48

    @nn.compact
    def __call__(self, x, train=True):
        del train
        x = nn.Embed(256, self.width)(x)
        # As one product: a window of 5 bytes at each place.
        places = [x[:, start : x.shape[1] - 4 + start] for start in range(5)]
        x = nn.relu(nn.Dense(self.features)(jnp.concatenate(places, -1))).max(1)
        return nn.Dense(NUM_CLASSES)(nn.relu(nn.Dense(self.features)(x)))


class Mixer(nn.Module):
    """MLP-Mixer (arXiv 2105.01601): MLPs over the patches and over the features by turns."""

    patch: int = 7
    width: int = 32
    depth: int = 2

    @nn.compact
    def __call__(self, x, train=True):
        del train
        x = nn.Dense(self.width)(patches(x, self.patch))
        for _ in range(self.depth):
            x = x + _two_layers(nn.LayerNorm()(x).swapaxes(1, 2), 2).swapaxes(1, 2)
            x = x + _two_layers(nn.LayerNorm()(x), 4)
        return nn.Dense(NUM_CLASSES)(nn.LayerNorm()(x).mean(1))


class Attention(nn.Module):
    """Blocks of attention and MLP on pieces of a signal (batch, length, channels)."""

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


class GroupCNN(nn.Module):
    """Two convolutions with GroupNorm on small images."""

    @nn.compact
    def __call__(self, x, train=True):
        del train
        for features, strides in ((16, 1), (32, 2)):
            x = nn.Conv(features, (3, 3), strides, use_bias=False)(x)
            x = nn.relu(nn.GroupNorm(num_groups=4)(x))
        return nn.Dense(NUM_CLASSES)(x.mean((1, 2)))


def _two_layers(x: Any, factor: int) -> Any:
    dense = functools.partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform())
    return dense(x.shape[-1])(nn.gelu(dense(factor * x.shape[-1])(x)))
