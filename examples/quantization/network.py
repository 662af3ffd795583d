"""Networks whose layers have quantized inputs and weights.

Each layer quantizes its input with a step size of its own. Weights are quantized before the network
is applied, in the tree of parameters, so that a method can perturb them on either side of the
quantizer. The first layer, which takes the images, and the last layer have 8 bits. The inputs of
all layers but the first follow a ReLU, so their levels are unsigned.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax import lax

from examples.common.networks import Layers, MobileNet, ResNet18
from examples.quantization.quantizer import Levels, initial_step, integers, levels, quantize

NETWORKS = ("cnn", "resnet18", "mobilenet")
_FIRST, _LAST, _BITS_OF_ENDS = "Conv_0", "Dense_0", 8


def make_network(name: str, num_classes: int, layers: Layers = Layers()) -> nn.Module:  # noqa: B008
    """Make one of ``NETWORKS`` for images of about 32 pixels, by default without quantization."""
    match name:
        case "cnn":
            return CNN(num_classes, layers=layers)
        case "resnet18":
            return ResNet18(num_classes, layers=layers)
        case "mobilenet":
            return MobileNet(num_classes, stem_strides=1, layers=layers)
    raise ValueError(f"name must be one of {', '.join(NETWORKS)}, not {name!r}.")


class CNN(nn.Module):
    """Two 3×3 convolutions for each width, the first with stride 2, with BatchNorm and ReLU."""

    num_classes: int
    widths: tuple[int, ...] = (16, 32, 64)
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, *, is_training: bool) -> jax.Array:
        make = self.layers.first
        for width in self.widths:
            for strides in (2, 1):
                x = make(width, (3, 3), strides, padding=1, use_bias=False)(x)
                x = nn.relu(nn.BatchNorm(not is_training, momentum=0.9)(x))
                make = self.layers.conv
        return self.layers.dense(self.num_classes)(x.mean((1, 2)))


class InputQuantizer(nn.Module):
    """``operation(x, kernel, ...)`` of a layer with x quantized; x sets the initial step size."""

    operation: Callable[..., jax.Array]
    bits: int
    is_signed: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        own = levels(self.bits, is_signed=self.is_signed)
        step = self.param("step", lambda _: initial_step(x, own))
        return self.operation(quantize(x, step, own, x[0].size), kernel, *args, **kwargs)


def quantized_layers(bits: int) -> Layers:
    """Return layers whose inputs have ``bits`` bits."""

    def conv(*args: Any) -> Callable[..., nn.Conv]:
        operation = functools.partial(InputQuantizer, lax.conv_general_dilated, *args)
        return functools.partial(nn.Conv, conv_general_dilated_cls=operation)

    operation = functools.partial(InputQuantizer, lax.dot_general, _BITS_OF_ENDS)
    dense = functools.partial(nn.Dense, dot_general_cls=operation)
    return Layers(conv(_BITS_OF_ENDS, True), conv(bits), dense)


def weight_levels(layer: str, bits: int) -> Levels:
    """Return the levels of the weights of a layer."""
    return levels(_BITS_OF_ENDS if layer in (_FIRST, _LAST) else bits, is_signed=True)


def quantized(params: dict[str, Any], bits: int) -> dict[str, Any]:
    """Quantize each ``kernel`` of a network with the ``weight_step`` beside it.

    The network is applied to the result and does not use the step sizes of weights.
    """
    result = dict(params)
    for name, layer in with_weights(params).items():
        w, step = layer["kernel"], layer["weight_step"]
        result[name] = layer | {"kernel": quantize(w, step, weight_levels(name, bits), w.size)}
    return result


def bins(params: dict[str, Any], bits: int) -> dict[str, jax.Array]:
    """Return the integer of each weight, by layer."""
    return {
        name: integers(layer["kernel"], layer["weight_step"], weight_levels(name, bits))
        for name, layer in with_weights(params).items()
    }


def with_weights(params: dict[str, Any]) -> dict[str, Any]:
    """Return the layers that have a kernel."""
    return {name: layer for name, layer in params.items() if "kernel" in layer}


def with_step_sizes(
    model: nn.Module, variables: dict[str, Any], images: jax.Array, bits: int
) -> dict[str, Any]:
    """Add initial step sizes to the parameters of a trained float network.

    Args:
      model: The quantized network.
      variables: The variables of the float network.
      images: The first batch. A layer gets it through the quantizers of previous layers.
      bits: Bits of the weights.
    """
    params = dict(variables["params"])
    for name, layer in with_weights(params).items():
        step = initial_step(layer["kernel"], weight_levels(name, bits))
        params[name] = layer | {"weight_step": step}
    _, changed = model.apply(
        variables | {"params": quantized(params, bits)},
        images,
        is_training=False,
        mutable=["params"],
        rngs={"params": jax.random.key(0)},  # required, but not used
    )
    return {name: changed["params"][name] | layer for name, layer in params.items()}
