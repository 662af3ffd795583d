"""The networks: sizes, PyTorch's names, interpolation and pooling; large ones by their shapes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.common import weights
from examples.segmentation.network import (
    PSPNet,
    ResNet,
    SmallResNet,
    make_network,
    pool,
    resize,
    torch_name,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")

RNG = np.random.default_rng(0)


def shapes(model, side, *, is_training):
    """Of the outputs and the variables, without computing them."""
    image = jnp.zeros((1, side, side, 3))
    return jax.eval_shape(
        lambda key: model.init_with_output(key, image, is_training=is_training), jax.random.key(0)
    )


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("pspnet50", 473, 49_081_578),
        ("pspnet101", 473, 68_073_706),
        ("deeplab_resnet50", 513, 39_761_845),
        ("deeplab_resnet101", 513, 58_753_973),
        ("deeplab_mobilenet", 513, 5_225_717),
    ],
)
def test_networks_have_the_parameters_of_the_authors(name, side, expected):
    outputs, variables = shapes(make_network(name, 21, 16), side, is_training=True)
    assert count(variables) == expected
    heads = 2 if name.startswith("pspnet") else 1
    assert [logits.shape for logits in outputs] == [(1, side, side, 21)] * heads
    assert all(logits.dtype == jnp.float32 for logits in outputs)


@pytest.mark.parametrize(("name", "expected"), [("50", 46_716_373), ("101", 65_708_501)])
def test_the_auxiliary_head_is_of_training_alone(name, expected):
    model = make_network(f"pspnet{name}", 21, 16)
    outputs, variables = shapes(model, 473, is_training=False)
    assert len(outputs) == 1
    assert count(variables) == expected


@pytest.mark.parametrize(
    ("name", "output_stride", "side", "expected"),
    [
        ("pspnet50", 16, 473, [(119, 256), (60, 512), (60, 1024), (60, 2048)]),
        ("deeplab_resnet50", 16, 513, [(129, 256), (65, 512), (33, 1024), (33, 2048)]),
        ("deeplab_resnet50", 8, 513, [(129, 256), (65, 512), (65, 1024), (65, 2048)]),
        ("deeplab_mobilenet", 16, 513, [(129, 24), (33, 320)]),
        ("deeplab_mobilenet", 8, 513, [(129, 24), (65, 320)]),
    ],
)
def test_feature_maps_have_the_output_stride(name, output_stride, side, expected):
    backbone = make_network(name, 21, output_stride).backbone
    outputs, _ = shapes(backbone, side, is_training=False)
    assert [(x.shape[1], x.shape[-1]) for x in outputs] == expected


def dilations(model, side=65):
    """Of the convolutions of a backbone larger than 1×1, by their layers."""
    found = {}

    def record(next_fun, args, kwargs, context):
        module = context.module
        if getattr(module, "kernel_size", (1,))[0] > 1:
            found[module.name] = (module.kernel_dilation, module.strides)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes(model, side, is_training=False)
    return {
        name: tuple(x if isinstance(x, int) else x[0] for x in values)
        for name, values in found.items()
    }


@pytest.mark.parametrize(
    ("name", "output_stride", "third", "fourth"),
    [
        # Dilation and stride of a stage's first block, and of its others.
        ("pspnet50", 16, [(2, 1), (2, 1)], [(4, 1), (4, 1)]),
        ("deeplab_resnet50", 16, [(1, 2), (1, 1)], [(1, 1), (2, 1)]),
        ("deeplab_resnet50", 8, [(1, 1), (2, 1)], [(2, 1), (4, 1)]),
    ],
)
def test_stages_of_resnets_are_dilated_for_their_strides(name, output_stride, third, fourth):
    found = dilations(make_network(name, 21, output_stride).backbone)
    for stage, expected in ((3, third), (4, fourth)):
        blocks = [found[f"layer{stage}_{block}_conv2"] for block in (0, 1)]
        assert blocks == expected


def batch_norm(name, channels):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (channels,) for leaf in leaves}


def torchvision_resnet50():
    """Shapes of the state_dict but for the last layer's."""
    expected = {"conv1.weight": (64, 3, 7, 7)} | batch_norm("bn1", 64)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        width = 32 * 2**stage
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            expected |= {
                f"{name}.conv1.weight": (width, inputs, 1, 1),
                f"{name}.conv2.weight": (width, width, 3, 3),
                f"{name}.conv3.weight": (4 * width, width, 1, 1),
            }
            expected |= batch_norm(f"{name}.bn1", width) | batch_norm(f"{name}.bn2", width)
            expected |= batch_norm(f"{name}.bn3", 4 * width)
            if block == 0:
                expected[f"{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                expected |= batch_norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return expected


def torchvision_mobilenet():
    """Shapes of the state_dict but for the last convolution's and the last layer's."""
    expected = {"features.0.0.weight": (32, 3, 3, 3)} | batch_norm("features.0.1", 32)
    widths = [16, *(24,) * 2, *(32,) * 3, *(64,) * 4, *(96,) * 3, *(160,) * 3, 320]
    for block, (inputs, width) in enumerate(zip([32, *widths], widths, strict=False), 1):
        name, hidden = f"features.{block}.conv", inputs if block == 1 else 6 * inputs
        layers = [(f"{name}.0", (hidden, inputs, 1, 1))] if block > 1 else []
        layers.append((f"{name}.{len(layers)}", (hidden, 1, 3, 3)))
        for layer, shape in layers:
            expected[f"{layer}.0.weight"] = shape
            expected |= batch_norm(f"{layer}.1", hidden)
        expected[f"{name}.{len(layers)}.weight"] = (width, hidden, 1, 1)
        expected |= batch_norm(f"{name}.{len(layers) + 1}", width)
    return expected


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("deeplab_resnet50", torchvision_resnet50()),
        ("deeplab_mobilenet", torchvision_mobilenet()),
    ],
)
def test_a_backbone_takes_all_of_torchvisions_weights(network, expected):
    _, variables = shapes(make_network(network, 21, 16), 65, is_training=True)
    stored = {
        name: np.full(shape, index, np.float32)
        for index, (name, shape) in enumerate(expected.items())
    }
    filled = weights.fill(variables, stored, torch_name)
    of_backbone = {kind: filled[kind]["backbone"] for kind in ("params", "batch_stats")}
    values = [int(leaf.flat[0]) for leaf in map(np.asarray, jax.tree.leaves(of_backbone))]
    assert sorted(values) == list(range(len(expected)))  # each is asked for, and once
    heads = [leaf for name, leaf in filled["params"].items() if name != "backbone"]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(heads))


def test_the_deep_stem_has_the_names_of_semsegs():
    backbone = ResNet((1,), ((1, 1),), has_deep_stem=True)
    _, variables = shapes(backbone, 33, is_training=False)
    kernels = {
        name: leaves["kernel"].shape
        for name, leaves in variables["params"].items()
        if name in ("conv1", "conv2", "conv3")
    }
    assert kernels == {
        "conv1": (3, 3, 3, 64),
        "conv2": (3, 3, 64, 64),
        "conv3": (3, 3, 64, 128),
    }
    assert {"bn1", "bn2", "bn3"} <= variables["params"].keys()
    assert variables["params"]["layer1_0_conv1"]["kernel"].shape == (1, 1, 128, 64)


def interpolated(x, size, align_corners):
    """By the formula, pixel by pixel, of one channel."""
    result = np.empty(size)
    for y in range(size[0]):
        for x_ in range(size[1]):
            places = []
            for place, old, new in zip((y, x_), x.shape, size, strict=True):
                if align_corners:
                    real = place * (old - 1) / (new - 1)
                else:
                    real = min(max((place + 0.5) * old / new - 0.5, 0), old - 1)
                low = min(int(real), max(old - 2, 0))
                places.append((low, min(low + 1, old - 1), real - low))
            (top, bottom, v), (left, right, h) = places
            upper = (1 - h) * x[top, left] + h * x[top, right]
            lower = (1 - h) * x[bottom, left] + h * x[bottom, right]
            result[y, x_] = (1 - v) * upper + v * lower
    return result


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("old", "new"), [((3, 4), (9, 7)), ((1, 2), (4, 5)), ((6, 6), (13, 6))])
def test_interpolation_follows_the_formula(align_corners, old, new):
    x = RNG.normal(size=(2, *old, 3)).astype(np.float32)
    result = np.asarray(resize(x, new, align_corners=align_corners))
    for image in range(2):
        for channel in range(3):
            expected = interpolated(x[image, :, :, channel], new, align_corners)
            np.testing.assert_allclose(result[image, :, :, channel], expected, atol=1e-5)
    if not align_corners:
        jaxs = jax.image.resize(x, (2, *new, 3), "bilinear")
        np.testing.assert_allclose(result, jaxs, atol=1e-5)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(6, 12), (7, 8), (4, 5)])
def test_pooling_takes_means_of_parts(bins, size):
    x = RNG.normal(size=(1, *size, 2)).astype(np.float32)
    result = np.asarray(pool(x, bins))
    assert result.shape == (1, bins, bins, 2)
    for i in range(bins):
        for j in range(bins):
            rows, columns = (
                slice(int(np.floor(k * n / bins)), int(np.ceil((k + 1) * n / bins)))
                for k, n in zip((i, j), size, strict=True)
            )
            expected = x[0, rows, columns].mean((0, 1))
            np.testing.assert_allclose(result[0, i, j], expected, rtol=1e-5, atol=1e-6)


def test_the_small_network_sees_features_of_a_quarter_of_the_size():
    outputs, _ = shapes(SmallResNet(), 48, is_training=True)
    assert [x.shape[1:] for x in outputs] == [(24, 24, 16), (12, 12, 32), (12, 12, 48)]
    _, variables = shapes(make_network("small", 6, 16), 48, is_training=True)
    assert 1e5 < count(variables) < 2e5


@pytest.mark.parametrize("kept", [0.9, 0.99])
def test_batch_norm_keeps_its_share_of_a_step(kept):
    image = jnp.asarray(RNG.normal(size=(2, 17, 17, 3)), jnp.float32)
    backbone = ResNet((1,), ((1, 1),), momentum=kept)
    variables = backbone.init(jax.random.key(0), image, is_training=True)
    _, changed = backbone.apply(variables, image, is_training=True, mutable=["batch_stats"])
    kernel = variables["params"]["conv1"]["kernel"]
    layer = jax.lax.conv_general_dilated(
        image, kernel, (2, 2), [(3, 3), (3, 3)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = kept + (1 - kept) * np.asarray(layer).var((0, 1, 2))
    np.testing.assert_allclose(changed["batch_stats"]["bn1"]["var"], expected, rtol=1e-4)


def test_batch_norm_keeps_more_in_deeplabs_backbones():
    for name, kept in (
        *(("pspnet50", 0.9), ("pspnet101", 0.9), ("deeplab_mobilenet", 0.99)),
        *(("deeplab_resnet50", 0.99), ("deeplab_resnet101", 0.99)),
    ):
        assert make_network(name, 21, 16).backbone.momentum == kept


def test_the_pyramid_joins_features_and_their_means():
    model = PSPNet(SmallResNet(), 6)
    _, variables = shapes(model, 48, is_training=True)
    kernels = [leaf.shape for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
    assert (3, 3, 96, 12) in kernels  # 48, and 12 of each of four poolings
    assert (3, 3, 32, 8) in kernels  # the auxiliary head's
