"""PSPNet and DeepLabv3+ in Flax Linen, on ResNets and MobileNetV2, and a small network.

Each takes images (batch, height, width, 3) and returns a tuple of float32 logits (batch, height,
width, classes). In training PSPNet returns a second array, the logits of its auxiliary head.

A layer of a backbone is named as in torchvision, with ``_`` for ``.``, so that ``torch_name`` finds
its weights. Convolutions are initialized from He's normal distribution by fan-out (arXiv
1502.01852), as in torchvision; the authors initialize the heads differently. BatchNorm has
ε = 1e-5, and momentum 0.9, or 0.99 in the backbones of DeepLab.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from examples.common.networks import conv_and_norm

NETWORKS = (
    "small",
    "pspnet50",
    "pspnet101",
    "deeplab_resnet50",
    "deeplab_resnet101",
    "deeplab_mobilenet",
)
_RESNETS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}  # blocks of each stage
_DILATIONS = {  # of the first block and of the other blocks of each stage
    16: ((1, 1), (1, 1), (1, 1), (1, 2)),
    8: ((1, 1), (1, 1), (1, 2), (2, 4)),
    "pspnet": ((1, 1), (1, 1), (2, 2), (4, 4)),
}
_ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
_BINS = (1, 2, 3, 6)


def make_network(name: str, num_classes: int, output_stride: int) -> nn.Module:
    """Make one of ``NETWORKS``. ``output_stride``, 16 or 8, is for those of DeepLab."""
    if name == "small":
        return DeepLabV3Plus(SmallResNet(), num_classes, rates=(2, 4), width=32, low_width=8)
    if name.startswith("pspnet"):
        blocks = _RESNETS[name.removeprefix("pspnet")]
        return PSPNet(ResNet(blocks, _DILATIONS["pspnet"], has_deep_stem=True), num_classes)
    if name == "deeplab_mobilenet":
        backbone = MobileNetV2(output_stride, momentum=0.99)
    else:
        blocks = _RESNETS[name.removeprefix("deeplab_resnet")]
        backbone = ResNet(blocks, _DILATIONS[output_stride], momentum=0.99)
    return DeepLabV3Plus(backbone, num_classes, _ATROUS_RATES[output_stride])


def torch_name(path: tuple[str, ...]) -> str | None:
    """Return torchvision's name of a layer of the backbone, or None for the heads."""
    return path[1].replace("_", ".") if path[0] == "backbone" else None


class PSPNet(nn.Module):
    """Pyramid scene parsing (arXiv 1612.01105), as in the authors' later code (semseg).

    The head takes the last stage and its means over 1, 4, 9 and 36 parts of the image. With 21
    classes there are 49,081,578 parameters on ResNet-50 and 68,073,706 on ResNet-101, of which the
    auxiliary head has 2,365,205.
    """

    backbone: nn.Module
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, *, is_training: bool) -> tuple[jax.Array, ...]:
        conv, norm = conv_and_norm(is_training)
        drop = nn.Dropout(0.1, broadcast_dims=(1, 2), deterministic=not is_training)

        def head(x, width):
            x = drop(nn.relu(norm()(conv(width)(x))))
            logits = nn.Conv(self.num_classes, (1, 1))(x)
            return resize(logits, images.shape[1:3], align_corners=True)

        *_, auxiliary, x = self.backbone(images, is_training=is_training)
        parts = [x]
        for bins in _BINS:
            pooled = nn.relu(norm()(conv(x.shape[-1] // len(_BINS), kernel=1)(pool(x, bins))))
            parts.append(resize(pooled, x.shape[1:3], align_corners=True))
        logits = head(jnp.concatenate(parts, -1), x.shape[-1] // 4)
        if not is_training:
            return (logits,)
        return logits, head(auxiliary, auxiliary.shape[-1] // 4)


class DeepLabV3Plus(nn.Module):
    """DeepLabv3+ (arXiv 1802.02611): dilated convolutions at several rates, and a decoder.

    The decoder has one 3×3 convolution, as in VainF/DeepLabV3Plus-Pytorch. With 21 classes there
    are 39,761,845 parameters on ResNet-50, 58,753,973 on ResNet-101 and 5,225,717 on MobileNetV2.

    Attributes:
      backbone: A network that returns feature maps, of which the decoder takes the first.
      num_classes: The number of classes.
      rates: Dilations of the 3×3 convolutions on the last feature map.
      width: Channels after the backbone.
      low_width: Channels to which the first feature map is reduced.
    """

    backbone: nn.Module
    num_classes: int
    rates: tuple[int, ...]
    width: int = 256
    low_width: int = 48

    @nn.compact
    def __call__(self, images: jax.Array, *, is_training: bool) -> tuple[jax.Array, ...]:
        conv, norm = conv_and_norm(is_training)
        low, *_, x = self.backbone(images, is_training=is_training)
        parts = [conv(self.width, kernel=1)(x)]
        parts += [conv(self.width, dilation=rate)(x) for rate in self.rates]
        parts.append(conv(self.width, kernel=1)(pool(x, 1)))
        parts = [nn.relu(norm()(part)) for part in parts]
        parts[-1] = jnp.broadcast_to(parts[-1], parts[0].shape)
        x = nn.relu(norm()(conv(self.width, kernel=1)(jnp.concatenate(parts, -1))))
        x = nn.Dropout(0.1, deterministic=not is_training)(x)
        low = nn.relu(norm()(conv(self.low_width, kernel=1)(low)))
        x = jnp.concatenate([low, resize(x, low.shape[1:3], align_corners=False)], -1)
        x = nn.relu(norm()(conv(self.width)(x)))
        logits = nn.Conv(self.num_classes, (1, 1))(x)
        return (resize(logits, images.shape[1:3], align_corners=False),)


class ResNet(nn.Module):
    """A ResNet of bottlenecks (arXiv 1512.03385) with dilations in place of strides.

    Returns the outputs of its four stages.

    Attributes:
      blocks: The number of blocks of each stage.
      dilations: For each stage the dilation of the first and of the other blocks. The first stage
        and stages whose other blocks are dilated have stride 1, the others 2.
      has_deep_stem: Whether the stem has PSPNet's three 3×3 convolutions with up to 128 channels,
        or one of 7×7 with 64.
      momentum: The momentum of BatchNorm's statistics.
    """

    blocks: tuple[int, ...]
    dilations: tuple[tuple[int, int], ...]
    has_deep_stem: bool = False
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> Sequence[jax.Array]:
        conv, norm = conv_and_norm(is_training, momentum=self.momentum)
        stem = [(64, 3, 2), (64, 3, 1), (128, 3, 1)] if self.has_deep_stem else [(64, 7, 2)]
        for i, (width, kernel, strides) in enumerate(stem, 1):
            x = conv(width, kernel=kernel, strides=strides, name=f"conv{i}")(x)
            x = nn.relu(norm(name=f"bn{i}")(x))
        padding: Any = ((1, 1), (1, 1))
        x = nn.max_pool(x, (3, 3), (2, 2), padding)
        stages = []
        for stage, (count, dilations) in enumerate(zip(self.blocks, self.dilations, strict=True)):
            width = 64 * 2**stage
            for block in range(count):
                name = f"layer{stage + 1}_{block}"
                strides = 2 if stage and not block and dilations[1] == 1 else 1
                y = conv(width, kernel=1, name=f"{name}_conv1")(x)
                y = nn.relu(norm(name=f"{name}_bn1")(y))
                dilation = dilations[min(block, 1)]
                y = conv(width, strides=strides, dilation=dilation, name=f"{name}_conv2")(y)
                y = nn.relu(norm(name=f"{name}_bn2")(y))
                y = norm(name=f"{name}_bn3")(conv(4 * width, kernel=1, name=f"{name}_conv3")(y))
                if not block:
                    x = conv(4 * width, kernel=1, strides=strides, name=f"{name}_downsample_0")(x)
                    x = norm(name=f"{name}_downsample_1")(x)
                x = nn.relu(x + y)
            stages.append(x)
        return stages


class MobileNetV2(nn.Module):
    """MobileNetV2 (arXiv 1801.04381) without its last convolution, with dilations for strides.

    Returns the output of stride 4 and that of the last block.
    """

    output_stride: int
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> Sequence[jax.Array]:
        conv, norm = conv_and_norm(is_training, momentum=self.momentum)

        def activated(x, name, **kwargs):
            x = conv(**kwargs, name=f"{name}_0")(x)
            return nn.relu6(norm(name=f"{name}_1")(x))

        x = activated(x, "features_0", width=32, strides=2)
        stride, dilation, block, low = 2, 1, 0, x
        stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)]
        stages += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
        for expansion, width, count, strides in stages:
            first_dilation = dilation
            if stride == self.output_stride:
                dilation, strides = dilation * strides, 1
            stride *= strides
            for i in range(count):
                block, y = block + 1, x
                name, part = f"features_{block}_conv", 0
                if expansion > 1:
                    y = activated(y, f"{name}_0", width=expansion * x.shape[-1], kernel=1)
                    part = 1
                y = activated(
                    y,
                    f"{name}_{part}",
                    width=y.shape[-1],
                    strides=1 if i else strides,
                    dilation=dilation if i else first_dilation,
                    groups=y.shape[-1],
                )
                y = conv(width, kernel=1, name=f"{name}_{part + 1}")(y)
                y = norm(name=f"{name}_{part + 2}")(y)
                x = x + y if i else y
            if width == 24:
                low = x
        return low, x


class SmallResNet(nn.Module):
    """Three basic blocks with 16, 32 and 48 channels, for images of about 48 pixels.

    Their strides are 2, 4 and 4, and the last has dilation 2. Returns the outputs of all three.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> Sequence[jax.Array]:
        conv, norm = conv_and_norm(is_training)
        x = nn.relu(norm()(conv(16, strides=2)(x)))
        stages = []
        for width, strides, dilation in ((16, 1, 1), (32, 2, 1), (48, 1, 2)):
            y = nn.relu(norm()(conv(width, strides=strides)(x)))
            y = norm()(conv(width, dilation=dilation)(y))
            if x.shape != y.shape:
                x = norm()(conv(width, kernel=1, strides=strides)(x))
            x = nn.relu(x + y)
            stages.append(x)
        return stages


def resize(x: jax.Array, size: tuple[int, ...], *, align_corners: bool) -> jax.Array:
    """Resize (batch, height, width, channels) to a larger ``size`` by bilinear interpolation.

    Args:
      x: The array.
      size: The new height and width.
      align_corners: Keep the positions of the middles of the corner pixels, rather than those of
        the corners of the image as ``jax.image.resize`` does.
    """
    rows, columns = (
        _interpolation(*lengths, align_corners) for lengths in zip(x.shape[1:3], size, strict=True)
    )
    return jnp.einsum("yh,xw,bhwc->byxc", rows, columns, x)


def pool(x: jax.Array, bins: int) -> jax.Array:
    """Average over ``bins`` × ``bins`` parts of an image, as PyTorch's adaptive pooling does.

    Part i of n pixels is from ⌊i n / bins⌋ to ⌈(i + 1) n / bins⌉. Parts may overlap by a pixel.
    """
    return jnp.einsum("yh,xw,bhwc->byxc", *(_means(n, bins) for n in x.shape[1:3]), x)


def _interpolation(count: int, new_count: int, align_corners: bool) -> np.ndarray:
    """Return the matrix (new_count, count) that interpolates."""
    if align_corners:
        places = np.linspace(0, count - 1, new_count)
    else:
        places = ((np.arange(new_count) + 0.5) * count / new_count - 0.5).clip(0, count - 1)
    distances = np.abs(places[:, None] - np.arange(count))
    return np.maximum(1 - distances, 0).astype(np.float32)


def _means(count: int, bins: int) -> np.ndarray:
    """Return the matrix (bins, count) that averages."""
    matrix = np.zeros((bins, count), np.float32)
    for i, row in enumerate(matrix):
        first, end = i * count // bins, -(-(i + 1) * count // bins)
        row[first:end] = 1 / (end - first)
    return matrix
