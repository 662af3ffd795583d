"""Convolutional classifiers with BatchNorm, in Flax Linen."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from arsam_jax.models import ResNet18

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
        return ResNet18(num_classes, width, dropout)
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
        x = jnp.mean(x, axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not is_training)(x)
        return nn.Dense(self.num_classes)(x)


def _conv(width: int, *, strides: int = 1) -> nn.Conv:
    return nn.Conv(
        width,
        (3, 3),
        strides=strides,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
    )


def _norm(is_training: bool):
    return functools.partial(nn.BatchNorm, use_running_average=not is_training, momentum=0.9)
