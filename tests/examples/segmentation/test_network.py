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

long = pytest.mark.long
RNG = np.random.default_rng(0)


def shapes(model, side, *, is_training):
    """Return the shapes of the outputs and the variables."""
    image = jnp.zeros((1, side, side, 3))
    return jax.eval_shape(
        lambda key: model.init_with_output(key, image, is_training=is_training), jax.random.key(0)
    )


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("name", "side", "expected", "momentum"),
    [
        pytest.param("pspnet50", 473, 49_081_578, 0.9, marks=long),
        pytest.param("pspnet101", 473, 68_073_706, 0.9, marks=long),
        pytest.param("deeplab_resnet50", 513, 39_761_845, 0.99, marks=long),
        pytest.param("deeplab_resnet101", 513, 58_753_973, 0.99, marks=long),
        ("deeplab_mobilenet", 513, 5_225_717, 0.99),
    ],
)
def test_networks_have_the_parameters_of_the_authors(name, side, expected, momentum):
    model = make_network(name, 21, 16)
    assert model.backbone.momentum == momentum
    outputs, variables = shapes(model, side, is_training=True)
    assert count(variables) == expected
    heads = 2 if name.startswith("pspnet") else 1
    assert [logits.shape for logits in outputs] == [(1, side, side, 21)] * heads
    assert all(logits.dtype == jnp.float32 for logits in outputs)
    if heads == 2:  # The auxiliary head is only used in training.
        outputs, variables = shapes(model, side, is_training=False)
        assert len(outputs) == 1
        assert count(variables) == expected - 2_365_205


@pytest.mark.parametrize(
    ("name", "output_stride", "side", "stages", "third", "fourth"),
    [
        # Sides and channels of stages, and dilation and stride of the first and the other blocks.
        ("pspnet50", 16, 473, (119, 60, 60, 60), [(2, 1), (2, 1)], [(4, 1), (4, 1)]),
        ("deeplab_resnet50", 16, 513, (129, 65, 33, 33), [(1, 2), (1, 1)], [(1, 1), (2, 1)]),
        ("deeplab_resnet50", 8, 513, (129, 65, 65, 65), [(1, 1), (2, 1)], [(2, 1), (4, 1)]),
        pytest.param("deeplab_mobilenet", 16, 513, (129, 33), None, None, marks=long),
        pytest.param("deeplab_mobilenet", 8, 513, (129, 65), None, None, marks=long),
    ],
)
def test_stages_have_the_output_stride(name, output_stride, side, stages, third, fourth):
    found = {}

    def record(next_fun, args, kwargs, context):
        module = context.module
        if getattr(module, "kernel_size", (1,))[0] > 1:
            found[module.name] = (module.kernel_dilation, module.strides)
        return next_fun(*args, **kwargs)

    backbone = make_network(name, 21, output_stride).backbone
    with nn.intercept_methods(record):
        outputs, _ = shapes(backbone, side, is_training=False)
    channels = (24, 320) if third is None else (256, 512, 1024, 2048)
    expected = [*zip(stages, channels, strict=True)]
    assert [(x.shape[1], x.shape[-1]) for x in outputs] == expected
    for stage, dilations in ((3, third), (4, fourth)):
        if dilations is not None:
            blocks = [found[f"layer{stage}_{block}_conv2"] for block in (0, 1)]
            assert blocks == dilations


def batch_norm(name, channels):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (channels,) for leaf in leaves}


def torchvision_resnet50():
    """Return the shapes of the state_dict without the last layer."""
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
    """Return the shapes of the state_dict without the last convolution and the last layer."""
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
        pytest.param("deeplab_resnet50", torchvision_resnet50(), marks=long),
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
    params = shapes(backbone, 33, is_training=False)[1]["params"]
    stem = {name: params[name]["kernel"].shape for name in ("conv1", "conv2", "conv3")}
    assert stem == {"conv1": (3, 3, 3, 64), "conv2": (3, 3, 64, 64), "conv3": (3, 3, 64, 128)}
    assert {"bn1", "bn2", "bn3"} <= params.keys()
    assert params["layer1_0_conv1"]["kernel"].shape == (1, 1, 128, 64)


@pytest.mark.parametrize(("old", "new"), [((3, 4), (9, 7)), ((1, 2), (4, 5)), ((6, 6), (13, 6))])
def test_interpolation_follows_the_formula(old, new):
    x = RNG.normal(size=(1, *old, 1)).astype(np.float32)
    corners = [np.linspace(0, n - 1, m) for n, m in zip(old, new, strict=True)]
    rows, columns = (
        np.minimum(place.astype(int), max(n - 2, 0)) for place, n in zip(corners, old, strict=True)
    )
    v, h = corners[0] - rows, corners[1] - columns
    below, right = np.minimum(rows + 1, old[0] - 1), np.minimum(columns + 1, old[1] - 1)
    image = x[0, :, :, 0]
    across = image[:, columns] * (1 - h) + image[:, right] * h
    expected = across[rows] * (1 - v[:, None]) + across[below] * v[:, None]
    aligned = np.asarray(resize(x, new, align_corners=True))
    np.testing.assert_allclose(aligned[0, :, :, 0], expected, atol=1e-5)
    result = resize(x, new, align_corners=False)
    np.testing.assert_allclose(result, jax.image.resize(x, (1, *new, 1), "bilinear"), atol=1e-5)


def test_pooling_takes_means_of_parts():
    size = (7, 4)
    x = RNG.normal(size=(1, *size, 2)).astype(np.float32)
    for bins in (1, 3, 6):
        result = np.asarray(pool(x, bins))
        assert result.shape == (1, bins, bins, 2)
        for i, j in np.ndindex(bins, bins):
            rows, columns = (
                slice(int(np.floor(k * n / bins)), int(np.ceil((k + 1) * n / bins)))
                for k, n in zip((i, j), size, strict=True)
            )
            expected = x[0, rows, columns].mean((0, 1))
            np.testing.assert_allclose(result[0, i, j], expected, rtol=1e-5, atol=1e-6)


def test_the_small_networks():
    outputs, _ = shapes(SmallResNet(), 48, is_training=True)
    assert [x.shape[1:] for x in outputs] == [(24, 24, 16), (12, 12, 32), (12, 12, 48)]
    _, variables = shapes(make_network("small", 6, 16), 48, is_training=True)
    assert 1e5 < count(variables) < 2e5
    _, variables = shapes(PSPNet(SmallResNet(), 6), 48, is_training=True)
    kernels = [leaf.shape for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
    assert (3, 3, 96, 12) in kernels  # 48 channels, and 12 of each of four poolings
    assert (3, 3, 32, 8) in kernels  # of the auxiliary head


@long
def test_batch_norm_has_the_momentum_of_the_backbone():
    image = jnp.asarray(RNG.normal(size=(2, 9, 9, 3)), jnp.float32)
    backbone = ResNet((1,), ((1, 1),), momentum=0.99)
    variables = backbone.init(jax.random.key(0), image, is_training=True)
    _, changed = backbone.apply(variables, image, is_training=True, mutable=["batch_stats"])
    kernel = variables["params"]["conv1"]["kernel"]
    layer = jax.lax.conv_general_dilated(
        image, kernel, (2, 2), [(3, 3), (3, 3)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = 0.99 + 0.01 * np.asarray(layer).var((0, 1, 2))
    np.testing.assert_allclose(changed["batch_stats"]["bn1"]["var"], expected, rtol=1e-4)
