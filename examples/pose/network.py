"""HRNet with SimCC's head in Flax Linen: for each joint a distribution over x and one over y."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from examples.common.networks import conv_and_norm
from examples.pose.joints import NUM_JOINTS

BINS_PER_PIXEL = 2
"""SimCC's splitting factor."""


class HRNet(nn.Module):
    """HRNet (arXiv 1902.09212) with SimCC's head (arXiv 2107.03332).

    After a stem of stride 4 and some bottlenecks come stages of 2, 3 and 4 branches. Each branch
    has half the resolution and twice the width of the previous one. A module has ``blocks`` basic
    blocks in every branch, followed by a fusion: each branch becomes the sum of all branches at its
    resolution and width. The first branch gives a map for each joint, which two linear layers,
    shared by the joints, turn into logits of x and of y.

    The input are images (batch, size, size, 3), where 4 · 2^stages divides the size. The output are
    float32 logits (batch, 16, 2, 2 · size), one bin for each half pixel of x and y. For images of
    256 pixels there are 32,731,408 parameters at width 32, and 67,791,024 at width 48.

    Names are those of the authors' code, so that its weights can be read. Convolutions are
    initialized from He's normal distribution by fan-out (arXiv 1502.01852), linear layers uniformly
    within ±1/√inputs. The authors start from trained weights and initialize other convolutions with
    a deviation of 0.001. BatchNorm has momentum 0.9 and ε = 1e-5.

    Attributes:
      width: Channels of the first branch.
      stem: Channels of the stem. The bottlenecks have four times as many.
      bottlenecks: The number of bottlenecks before the first stage.
      blocks: The number of blocks in each branch of a module.
      modules: The number of modules of each stage.
    """

    width: int = 32
    stem: int = 64
    bottlenecks: int = 4
    blocks: int = 4
    modules: tuple[int, ...] = (1, 4, 3)

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> jax.Array:
        conv, norm = conv_and_norm(is_training)

        def in_block(x, name, place, width, kernel=3):
            x = conv(width, kernel=kernel, name=f"{name}.conv{place}")(x)
            return norm(name=f"{name}.bn{place}")(x)

        def pair(x, name, width, kernel=3, strides=1):
            x = conv(width, kernel=kernel, strides=strides, name=f"{name}.0")(x)
            return norm(name=f"{name}.1")(x)

        def bottleneck(x, name):
            y = nn.relu(in_block(x, name, 1, self.stem, kernel=1))
            y = nn.relu(in_block(y, name, 2, self.stem))
            y = in_block(y, name, 3, 4 * self.stem, kernel=1)
            if x.shape != y.shape:
                x = pair(x, f"{name}.downsample", 4 * self.stem, kernel=1)
            return nn.relu(x + y)

        def basic(x, name):
            y = nn.relu(in_block(x, name, 1, x.shape[-1]))
            return nn.relu(x + in_block(y, name, 2, x.shape[-1]))

        def fused(branches, name, place):
            """Sum all branches at the resolution and width of the one at ``place``."""
            total: Any = 0
            for other, x in enumerate(branches):
                path, width = f"{name}.{place}.{other}", self.width * 2**place
                if other > place:
                    factor = 2 ** (other - place)
                    x = pair(x, path, width, kernel=1)
                    x = x.repeat(factor, axis=1).repeat(factor, axis=2)
                for halving in range(place - other):
                    is_last = halving == place - other - 1
                    x = pair(x, f"{path}.{halving}", width if is_last else x.shape[-1], strides=2)
                    x = x if is_last else nn.relu(x)
                total += x
            return nn.relu(total)

        for place in (1, 2):
            x = conv(self.stem, strides=2, name=f"conv{place}")(x)
            x = nn.relu(norm(name=f"bn{place}")(x))
        for block in range(self.bottlenecks):
            x = bottleneck(x, f"layer1.{block}")
        branches = [x]
        for stage, modules in enumerate(self.modules, 1):
            lower = pair(
                branches[-1], f"transition{stage}.{stage}.0", self.width * 2**stage, strides=2
            )
            if stage == 1:
                branches = [nn.relu(pair(x, "transition1.0", self.width))]
            branches.append(nn.relu(lower))
            for module in range(modules):
                name = f"stage{stage + 1}.{module}"
                for block in range(self.blocks):
                    branches = [
                        basic(x, f"{name}.branches.{place}.{block}")
                        for place, x in enumerate(branches)
                    ]
                is_last = stage == len(self.modules) and module == modules - 1
                branches = [
                    fused(branches, f"{name}.fuse_layers", place)
                    for place in range(1 if is_last else len(branches))
                ]
        return self._head(branches[0])

    def _head(self, x):
        batch, height, _, _ = x.shape
        he = nn.initializers.variance_scaling(2, "fan_out", "normal")
        maps = nn.Conv(NUM_JOINTS, (1, 1), kernel_init=he, name="final_layer")(x)
        maps = maps.transpose(0, 3, 1, 2).reshape(batch, NUM_JOINTS, -1)
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        axes = [
            nn.Dense(4 * height * BINS_PER_PIXEL, kernel_init=uniform, name=f"mlp_head_{axis}")(
                maps
            )
            for axis in "xy"
        ]
        return jnp.stack(axes, axis=2)


NETWORKS = {
    "small": HRNet(width=16, stem=16, bottlenecks=1, blocks=2, modules=(1,)),
    "hrnet_w32": HRNet(width=32),
    "hrnet_w48": HRNet(width=48),
}
"""The networks by name. The small one has 148,544 parameters for images of 64 pixels."""


def torch_name(path: tuple[str, ...]) -> str | None:
    """Return the name of a module in the authors' code, or None for modules of the head."""
    (name,) = path
    return None if name in ("final_layer", "mlp_head_x", "mlp_head_y") else name
