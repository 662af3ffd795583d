"""Image classifiers in Flax Linen: the networks of ARSAM's tables, and a vision transformer.

Needs the extra ``arsam-jax[flax]``. Every model takes images of shape ``(batch, height, width,
channels)`` and returns float32 logits of shape ``(batch, num_classes)``::

    model = PyramidNet(num_classes=100, dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0), images, is_training=False)
    logits, changed = model.apply(
        variables, images, is_training=True, mutable=["batch_stats"], rngs={"dropout": key})

All have these attributes:

- ``num_classes``: The number of logits.
- ``dtype``: The data type of the computation. Parameters, BatchNorm and LayerNorm statistics,
  softmax, the mean over pixels and the last layer stay in float32.
- ``dropout``: The rate of dropout, before the last layer unless stated otherwise.

Convolutions are initialized from He's normal distribution by fan-out (arXiv 1502.01852), and the
last layer as in PyTorch, uniformly within ±1/√(input channels). Numbers of parameters are for
images with 3 channels and 10 classes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Layers(NamedTuple):
    """Constructors of layers, such as Flax's with further arguments.

    ``first`` is the convolution that takes the images.
    """

    first: Callable[..., nn.Conv] = nn.Conv
    conv: Callable[..., nn.Conv] = nn.Conv
    dense: Callable[..., nn.Dense] = nn.Dense


class ResNet18(nn.Module):
    """ResNet-18 (arXiv 1512.03385) with a 3×3 stem of stride 1 for images of 32 or 64 pixels.

    Four stages of two blocks have 1, 2, 4 and 8 times ``width`` channels, with projections where
    the shape changes. At width 64 there are 11,173,962 parameters.
    """

    num_classes: int
    width: int = 64
    dropout: float = 0.0
    dtype: Any = jnp.float32
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> jax.Array:
        conv, norm = conv_and_norm(is_training, self.dtype, make=self.layers.conv)
        x = nn.relu(norm()(conv(self.width, make=self.layers.first)(x)))
        for stage in range(4):
            width = self.width * 2**stage
            for block in range(2):
                strides = 2 if stage and not block else 1
                y = nn.relu(norm()(conv(width, strides=strides)(x)))
                y = norm()(conv(width)(y))
                if x.shape != y.shape:
                    x = norm()(conv(width, kernel=1, strides=strides)(x))
                x = nn.relu(x + y)
        x = _dropout(self.dropout, is_training)(_mean_over_pixels(x))
        return _logits(self.num_classes, self.layers.dense)(x)


class WideResNet(nn.Module):
    """WideResNet-28-10 (arXiv 1605.07146): wide blocks, BatchNorm and ReLU first.

    Three stages of (``depth`` - 4) / 6 blocks have 16, 32 and 64 times ``width`` channels. Dropout
    is between the two convolutions of a block. The network is for images of 32 pixels and has
    36,479,194 parameters.

    Raises:
      ValueError: If the depth is not 6 n + 4.
    """

    num_classes: int
    depth: int = 28
    width: int = 10
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> jax.Array:
        blocks_per_stage, rest = divmod(self.depth - 4, 6)
        if blocks_per_stage < 1 or rest:
            raise ValueError(f"depth must be 6 n + 4, such as 10, 16 or 28, not {self.depth}.")
        conv, norm = conv_and_norm(is_training, self.dtype)
        x = conv(16)(x)
        for stage in range(3):
            width = 16 * self.width * 2**stage
            for block in range(blocks_per_stage):
                strides = 2 if stage and not block else 1
                y = nn.relu(norm()(x))
                if x.shape[-1] != width:  # the projection takes the activated input
                    x = conv(width, kernel=1, strides=strides)(y)
                y = nn.relu(norm()(conv(width, strides=strides)(y)))
                y = _dropout(self.dropout, is_training)(y)
                x = x + conv(width)(y)
        return _logits(self.num_classes)(_mean_over_pixels(nn.relu(norm()(x))))


class PyramidNet(nn.Module):
    """PyramidNet-110 with α = 270 (arXiv 1610.02915): every block adds the same number of channels.

    This is the additive network of basic blocks. Three stages have (``depth`` - 2) / 6 blocks each.
    The k-th of all N blocks has 16 + α k / N channels, rounded. A block is BatchNorm, convolution,
    BatchNorm, ReLU, convolution, BatchNorm. Its shortcut is averaged over 2×2 pixels if the block
    has stride 2, and padded with zero channels. The network is for images of 32 pixels. As in the
    authors' code, it has 28,485,477 parameters.

    Raises:
      ValueError: If the depth is not 6 n + 2.
    """

    num_classes: int
    depth: int = 110
    alpha: int = 270
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> jax.Array:
        blocks_per_stage, rest = divmod(self.depth - 2, 6)
        if blocks_per_stage < 1 or rest:
            raise ValueError(f"depth must be 6 n + 2, such as 8, 20 or 110, not {self.depth}.")
        num_blocks = 3 * blocks_per_stage
        conv, norm = conv_and_norm(is_training, self.dtype)
        x = norm()(conv(16)(x))
        for block in range(num_blocks):
            width = round(16 + self.alpha * (block + 1) / num_blocks)
            strides = 2 if block in (blocks_per_stage, 2 * blocks_per_stage) else 1
            y = nn.relu(norm()(conv(width, strides=strides)(norm()(x))))
            y = norm()(conv(width)(y))
            if strides == 2:
                x = nn.avg_pool(x, (2, 2), (2, 2), padding="SAME", count_include_pad=False)
            x = y + jnp.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])])
        x = _mean_over_pixels(nn.relu(norm()(x)))
        return _logits(self.num_classes)(_dropout(self.dropout, is_training)(x))


class MobileNet(nn.Module):
    """MobileNet, the first version (arXiv 1704.04861): depthwise and pointwise convolutions.

    There are 3,217,226 parameters. The fan-out of a depthwise kernel is that of one channel.

    Attributes:
      width: The paper's width multiplier.
      stem_strides: The stride of the first convolution. The paper's 2 is for images of 224 pixels,
        and 1 is for images of 32 pixels.
    """

    num_classes: int
    width: float = 1.0
    stem_strides: int = 2
    dropout: float = 0.0
    dtype: Any = jnp.float32
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> jax.Array:
        conv, norm = conv_and_norm(is_training, self.dtype, make=self.layers.conv)
        stem = conv(int(32 * self.width), strides=self.stem_strides, make=self.layers.first)
        x = nn.relu(norm()(stem(x)))
        widths = (64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)
        for block, width in enumerate(widths):
            depthwise = conv(
                x.shape[-1],
                strides=2 if block in (1, 3, 5, 11) else 1,
                groups=x.shape[-1],
            )
            x = nn.relu(norm()(depthwise(x)))
            x = nn.relu(norm()(conv(int(width * self.width), kernel=1)(x)))
        x = _dropout(self.dropout, is_training)(_mean_over_pixels(x))
        return _logits(self.num_classes, self.layers.dense)(x)


class VisionTransformer(nn.Module):
    """ViT-S/16 (arXiv 2010.11929, 2012.12877): self-attention over patches and a class token.

    There are 21,342,346 parameters for images of 32 × 32 pixels with ``patch_size=4``. ``apply``
    takes images of the size that ``init`` was given. Initial values are DeiT's: normal with
    standard deviation 0.02 for the position embedding, the class token and every linear layer, and
    PyTorch's uniform distribution for the patches. Dropout is after the position embedding, after
    attention, and after both layers of an MLP.

    Raises:
      ValueError: If patches do not tile the image.
    """

    num_classes: int
    patch_size: int = 16
    width: int = 384
    depth: int = 12
    num_heads: int = 6
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> jax.Array:
        if x.shape[1] % self.patch_size or x.shape[2] % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} must divide the size of the images, {x.shape[1:3]}."
            )
        normal = nn.initializers.normal(0.02)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=normal)
        norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
        dropout = _dropout(self.dropout, is_training)

        patch = (self.patch_size, self.patch_size)
        embed = nn.Conv(
            self.width, patch, patch, padding="VALID", dtype=self.dtype, kernel_init=_torch_uniform
        )
        x = embed(x).reshape(len(x), -1, self.width)
        class_token = self.param("class_token", normal, (1, 1, self.width)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(class_token, (len(x), 1, self.width)), x], axis=1)
        position = self.param("position", normal, (1, *x.shape[1:])).astype(self.dtype)
        x = dropout(x + position)

        for _ in range(self.depth):
            attention = nn.MultiHeadDotProductAttention(
                self.num_heads,
                dtype=self.dtype,
                kernel_init=normal,
                force_fp32_for_softmax=True,
            )
            x = x + dropout(attention(norm()(x)))
            y = dropout(nn.gelu(dense(4 * self.width)(norm()(x)), approximate=False))
            x = x + dropout(dense(self.width)(y))
        class_token = norm(dtype=jnp.float32)(x[:, 0])
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=normal)(class_token)


_torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv_and_norm(
    is_training: bool,
    dtype: Any = jnp.float32,
    momentum: float = 0.9,
    make: Callable[..., nn.Conv] = nn.Conv,
) -> tuple[Callable[..., nn.Conv], Callable[..., nn.BatchNorm]]:
    """Return constructors of convolutions and of BatchNorm as all networks use them."""

    def conv(
        width: int,
        *,
        kernel: int = 3,
        strides: int = 1,
        dilation: int = 1,
        groups: int = 1,
        make: Callable[..., nn.Conv] = make,
        name: str | None = None,
    ) -> nn.Conv:
        # The fan-out of a depthwise kernel is that of one channel, which its fan-in is.
        fan: Any = "fan_out" if groups == 1 else "fan_in"
        return make(
            width,
            (kernel, kernel),
            strides,
            padding=kernel // 2 * dilation,  # With "SAME", stride 2 would pad on one side only.
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=False,
            dtype=dtype,
            kernel_init=nn.initializers.variance_scaling(2, fan, "normal"),
            name=name,
        )

    norm = functools.partial(
        nn.BatchNorm,
        use_running_average=not is_training,
        momentum=momentum,
        epsilon=1e-5,
        dtype=dtype,
    )
    return conv, norm


def _dropout(rate: float, is_training: bool) -> nn.Dropout:
    return nn.Dropout(rate, deterministic=not is_training)


def _mean_over_pixels(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def _logits(num_classes: int, make: Callable[..., nn.Dense] = nn.Dense) -> nn.Dense:
    return make(num_classes, dtype=jnp.float32, kernel_init=_torch_uniform)
