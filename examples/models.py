"""Convolutional classifiers with BatchNorm, in Flax Linen."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

MODELS = ("cnn", "resnet18")


def make_model(
    name: str, image_size: int, num_classes: int, *, width: int, dropout: float = 0
) -> nn.Module:
    """The model of that name for square-ish images of ``image_size`` pixels."""
    if name == "cnn":
        # Halves the image until it is about 4 pixels wide: 2 stages for digits, 4 for CIFAR.
        num_stages = 1 + max(0, round(math.log2(image_size / 4)))
        widths = tuple(width * 2**stage for stage in range(num_stages))
        return CNN(widths, num_classes, dropout)
    if name == "resnet18":
        return ResNet(tuple(width * 2**stage for stage in range(4)), 2, num_classes, dropout)
    raise ValueError(f"There is no model named {name!r}; there are {', '.join(MODELS)}.")


class CNN(nn.Module):
    """For each width: a 3×3 convolution, with stride 2 but for the first, and another one.

    Every convolution is followed by BatchNorm and ReLU; at the end the mean over pixels and a
    linear layer.
    """

    widths: tuple[int, ...]
    num_classes: int
    dropout: float = 0

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> jax.Array:
        for stage, width in enumerate(self.widths):
            x = nn.relu(_norm(is_training)()(_conv(width, strides=2 if stage else 1)(x)))
            x = nn.relu(_norm(is_training)()(_conv(width)(x)))
        return _classify(x, self.num_classes, self.dropout, is_training)


class ResNet(nn.Module):
    """ResNet for small images: a 3×3 stem, then stages of two-convolution residual blocks."""

    widths: tuple[int, ...]
    blocks_per_stage: int
    num_classes: int
    dropout: float = 0

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> jax.Array:
        norm = _norm(is_training)
        x = nn.relu(norm()(_conv(self.widths[0])(x)))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks_per_stage):
                strides = 2 if stage and not block else 1
                y = nn.relu(norm()(_conv(width, strides=strides)(x)))
                y = norm()(_conv(width)(y))
                if x.shape != y.shape:
                    x = norm()(_conv(width, size=1, strides=strides)(x))
                x = nn.relu(x + y)
        return _classify(x, self.num_classes, self.dropout, is_training)


def _conv(width: int, *, size: int = 3, strides: int = 1) -> nn.Conv:
    return nn.Conv(
        width,
        (size, size),
        strides=strides,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
    )


def _norm(is_training: bool):
    return functools.partial(nn.BatchNorm, use_running_average=not is_training, momentum=0.9)


def _classify(x, num_classes, dropout, is_training):
    x = jnp.mean(x, axis=(1, 2))
    x = nn.Dropout(dropout, deterministic=not is_training)(x)
    return nn.Dense(num_classes)(x)
