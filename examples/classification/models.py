"""The networks of ``--model``: those of ``examples/common/networks.py``, and a small CNN."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def make_model(
    name: str,
    image_size: int,
    num_classes: int,
    *,
    width: int = 0,
    dropout: float = 0,
    dtype: Any = jnp.float32,
) -> nn.Module:
    """The model of that name for square images of ``image_size`` pixels per side.

    Args:
      width: channels of the first stage of cnn and resnet18. 0 means 16 and 64.

    Raises:
      ValueError: if there is no such model, or it has one width.
    """
    kwargs: dict[str, Any] = {"dropout": dropout, "dtype": dtype}
    if name == "cnn":
        # Halves the image until it is about 4 pixels wide: 2 stages for digits, 4 for CIFAR.
        num_stages = 1 + max(0, round(math.log2(image_size / 4)))
        widths = tuple((width or 16) * 2**stage for stage in range(num_stages))
        return CNN(widths, num_classes, **kwargs)

    from examples.common import networks  # of large networks only

    if width and name != "resnet18":
        raise ValueError(f"{name} has one width; --width is for cnn and resnet18")
    is_large = image_size >= 128  # As published for 224 pixels. Small images are scaled down less.
    match name:
        case "resnet18":
            return networks.ResNet18(num_classes, width or 64, **kwargs)
        case "wrn28_10":
            return networks.WideResNet(num_classes, **kwargs)
        case "pyramidnet110":
            return networks.PyramidNet(num_classes, **kwargs)
        case "mobilenet":
            return networks.MobileNet(num_classes, stem_strides=2 if is_large else 1, **kwargs)
        case "vit_s":
            return networks.VisionTransformer(num_classes, 16 if is_large else 4, **kwargs)
    raise ValueError(f"there is no model {name!r}")


class CNN(nn.Module):
    """For each width two 3×3 convolutions, the first one with stride 2 except in the first stage.

    Every convolution is followed by BatchNorm and ReLU. The mean over pixels and a linear layer
    come last. Initial values are Flax's, and He's by fan-in.
    """

    widths: tuple[int, ...]
    num_classes: int
    dropout: float = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> jax.Array:
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not is_training, momentum=0.9, dtype=self.dtype
        )
        conv = functools.partial(
            nn.Conv,
            kernel_size=(3, 3),
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
        )
        for stage, width in enumerate(self.widths):
            x = nn.relu(norm()(conv(width, strides=2 if stage else 1)(x)))
            x = nn.relu(norm()(conv(width)(x)))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not is_training)(x)
        return nn.Dense(self.num_classes)(x)
