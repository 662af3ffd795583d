"""The networks of ``--model``: those of ``examples/common/networks.py``, and a small CNN."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from examples.common import networks

MODELS = ("cnn", "resnet18", "wrn28_10", "pyramidnet110", "mobilenet", "vit_s")
_WITH_DEPTH = ("wrn28_10", "pyramidnet110", "vit_s")


def make_model(
    name: str,
    image_size: int,
    num_classes: int,
    *,
    width: int = 0,
    depth: int = 0,
    dropout: float = 0,
    dtype: Any = jnp.float32,
) -> nn.Module:
    """The model of that name for square images of ``image_size`` pixels per side.

    Args:
      width: channels of the first stage, α of PyramidNet; 0 for the published width.
      depth: layers, or blocks of the transformer; 0 for the published depth.

    Raises:
      ValueError: if there is no such model of this size.
    """
    if depth and name not in _WITH_DEPTH:
        raise ValueError(f"depth is for {', '.join(_WITH_DEPTH)}; {name} has one depth")
    kwargs: dict[str, Any] = {"dropout": dropout, "dtype": dtype} | (
        {"depth": depth} if depth else {}
    )
    is_large = (
        image_size >= 128
    )  # then as published for 224 pixels; smaller images are scaled down less
    match name:
        case "cnn":
            # Halves the image until it is about 4 pixels wide: 2 stages for digits, 4 for CIFAR.
            num_stages = 1 + max(0, round(math.log2(image_size / 4)))
            widths = tuple((width or 16) * 2**stage for stage in range(num_stages))
            return CNN(widths, num_classes, **kwargs)
        case "resnet18":
            return networks.ResNet18(num_classes, width or 64, **kwargs)
        case "wrn28_10":
            if width % 16:
                raise ValueError(f"the width of {name} is a multiple of 16, not {width}")
            return networks.WideResNet(num_classes, width=width // 16 or 10, **kwargs)
        case "pyramidnet110":
            return networks.PyramidNet(num_classes, alpha=width or 270, **kwargs)
        case "mobilenet":
            strides = 2 if is_large else 1
            return networks.MobileNet(num_classes, (width or 32) / 32, strides, **kwargs)
        case "vit_s":
            if width % 64:
                raise ValueError(f"the width of {name} is a multiple of 64, not {width}")
            if width:
                kwargs |= {"width": width, "num_heads": width // 64}
            return networks.VisionTransformer(num_classes, 16 if is_large else 4, **kwargs)
    raise ValueError(f"there is no model {name!r}; there are {', '.join(MODELS)}")


class CNN(nn.Module):
    """For each width two 3×3 convolutions, the first one with stride 2 except in the first stage.

    Every convolution is followed by BatchNorm and ReLU. The mean over pixels and a linear layer
    come last.
    """

    widths: tuple[int, ...]
    num_classes: int
    dropout: float = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> jax.Array:
        conv = functools.partial(_conv, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not is_training, momentum=0.9, dtype=self.dtype
        )
        for stage, width in enumerate(self.widths):
            x = nn.relu(norm()(conv(width, strides=2 if stage else 1)(x)))
            x = nn.relu(norm()(conv(width)(x)))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not is_training)(x)
        return nn.Dense(self.num_classes)(x)


def _conv(width: int, *, strides: int = 1, dtype: Any) -> nn.Conv:
    return nn.Conv(
        width,
        (3, 3),
        strides=strides,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
    )
