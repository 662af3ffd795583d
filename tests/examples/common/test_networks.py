"""The image classifiers: published sizes, initial values, dtypes, BatchNorm and dropout."""

import functools
import math
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from examples.common.networks import (
    MobileNet,
    PyramidNet,
    ResNet18,
    VisionTransformer,
    WideResNet,
    conv_and_norm,
)

FLOAT32, BFLOAT16 = jnp.dtype("float32"), jnp.dtype("bfloat16")
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
TINY = {
    "resnet18": ResNet18(5, width=4, dtype=jnp.bfloat16),
    "wide_resnet": WideResNet(5, depth=10, width=1, dtype=jnp.bfloat16),
    "pyramidnet": PyramidNet(5, depth=8, alpha=9, dtype=jnp.bfloat16),
    "mobilenet": MobileNet(5, width=1 / 8, stem_strides=1, dtype=jnp.bfloat16),
    "transformer": VisionTransformer(
        5, patch_size=4, width=32, depth=1, num_heads=2, dtype=jnp.bfloat16
    ),
}


pytestmark = pytest.mark.usefixtures("standard_promotion")


def flat(tree):
    return traverse_util.flatten_dict(tree)


@functools.cache
def variable_shapes(model, size):
    init = partial(model.init, is_training=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def outputs_of_modules(model, variables, images):
    """Return the shapes and dtypes of the outputs of each module in evaluation."""
    apply = partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    _, state = jax.eval_shape(partial(apply, is_training=False), variables, images)
    return {path[0]: values[0] for path, values in flat(state["intermediates"]).items()}


@pytest.mark.parametrize(
    ("model", "size", "count"),
    [
        # With 10 classes the sizes of kuangliu/pytorch-cifar's ResNet18 and MobileNet.
        (ResNet18(10), 32, 11_173_962),
        (ResNet18(100), 32, 11_220_132),
        # 36.5 M: arXiv 1605.07146. Exact: wrn28_10_cifar10 and _cifar100 of osmr/imgclsmob.
        (WideResNet(10), 32, 36_479_194),
        (WideResNet(100), 32, 36_536_884),
        # 28.3 M: arXiv 1610.02915. Exact: pyramidnet110_a270_cifar10 of osmr/imgclsmob;
        # the layers of dyhan0920/PyramidNet-PyTorch add up to the same.
        (PyramidNet(10), 32, 28_485_477),
        # 4.2 M: arXiv 1704.04861.
        (MobileNet(1000), 224, 4_231_976),
        (MobileNet(10, stem_strides=1), 32, 3_217_226),
        (MobileNet(200), 224, 3_411_976),
        # 22 M: arXiv 2012.12877. Exact: deit_small_patch16_224.
        (VisionTransformer(1000), 224, 22_050_664),
        (VisionTransformer(10, patch_size=4), 32, 21_342_346),
    ],
    ids=lambda value: "" if hasattr(value, "num_classes") else str(value),
)
def test_the_number_of_parameters_is_the_published_one(model, size, count):
    params = variable_shapes(model, size)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("model", "size", "convolutions", "channels"),
    [
        (ResNet18(10), 32, {32: 5, 16: 5, 8: 5, 4: 5}, 512),
        (WideResNet(10, depth=10), 32, {32: 4, 16: 3, 8: 3}, 640),
        (PyramidNet(10, depth=20), 32, {32: 7, 16: 6, 8: 6}, 286),
        (PyramidNet(10, depth=8), 30, {30: 3, 15: 2, 8: 2}, 286),
        (MobileNet(10, stem_strides=1), 32, {32: 3, 16: 4, 8: 4, 4: 12, 2: 4}, 1024),
        (MobileNet(200), 224, {112: 3, 56: 4, 28: 4, 14: 12, 7: 4}, 1024),
    ],
    ids=["resnet18", "wide_resnet", "pyramidnet", "odd_sizes", "mobilenet", "mobilenet_224"],
)
def test_convolutions_by_the_size_of_their_output(model, size, convolutions, channels):
    variables = variable_shapes(model, size)
    outputs = outputs_of_modules(model, variables, jnp.zeros((1, size, size, 3)))
    heights = [output.shape[1] for name, output in outputs.items() if name.startswith("Conv_")]
    assert Counter(heights) == convolutions
    assert variables["params"]["Dense_0"]["kernel"].shape == (channels, model.num_classes)


@pytest.mark.parametrize("name", TINY)
def test_all_but_the_computation_is_float32_under_bfloat16(name):
    model = TINY[name]
    variables = variable_shapes(model, 8)
    apply = partial(model.apply, is_training=True, mutable=["batch_stats"])
    logits, changed = jax.eval_shape(apply, variables, IMAGES)
    assert logits.shape == (2, 5)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, logits, changed))} == {FLOAT32}
    assert ("batch_stats" in changed) == (name != "transformer")
    outputs = outputs_of_modules(model, variables, IMAGES)
    head = {"__call__", "Dense_0", "Dropout_0"}  # after the mean over pixels
    if name == "transformer":
        head = {"__call__", "Dense_2", "LayerNorm_2"}
    assert {output.dtype for name, output in outputs.items() if name not in head} == {BFLOAT16}
    # An error if evaluation changed BatchNorm statistics or needed a key of dropout.
    jax.eval_shape(partial(model.apply, is_training=False), variables, IMAGES)


def test_batch_statistics_keep_nine_tenths():
    norm = conv_and_norm(is_training=True)[1]()
    assert (norm.momentum, norm.epsilon, norm.use_running_average) == (0.9, 1e-5, False)


def test_initial_values_are_the_stated_ones():
    variables = jax.jit(partial(ResNet18(5, width=16).init, is_training=False))(
        jax.random.key(0), IMAGES
    )
    for path, leaf in flat(variables["params"]).items():
        if path[-1] in ("bias", "scale"):
            assert (leaf == (path[-1] == "scale")).all()
            continue
        fan_out = math.prod(leaf.shape[:2]) * leaf.shape[-1]
        deviation = math.sqrt(2 / fan_out if leaf.ndim == 4 else 1 / (3 * len(leaf)))
        assert abs(leaf.mean()) < 5 * deviation / math.sqrt(leaf.size), path
        assert abs(leaf.std() - deviation) < 5 * deviation / math.sqrt(2 * leaf.size), path


@pytest.mark.parametrize("model", [model.clone(dropout=0.1) for model in TINY.values()], ids=TINY)
def test_dropout_is_drawn_in_training_only(model):
    variables = variable_shapes(model, 8)
    for is_training in (True, False):
        apply = partial(model.apply, is_training=is_training, mutable=["batch_stats"])
        key = {"rngs": {"dropout": jax.random.key(0)}} if is_training else {}
        jaxpr = str(
            jax.make_jaxpr(lambda v, apply=apply, key=key: apply(v, IMAGES, **key))(variables)
        )
        assert ("random_bits" in jaxpr) == is_training


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WideResNet(5, depth=27), r"depth must be 6 n \+ 4, .* not 27"),
        (WideResNet(5, depth=4), r"6 n \+ 4"),
        (PyramidNet(5, depth=111), r"depth must be 6 n \+ 2, .* not 111"),
        (VisionTransformer(5, patch_size=5), "patch_size 5 must divide"),
    ],
)
def test_impossible_sizes_are_errors(model, message):
    with pytest.raises(ValueError, match=message):
        variable_shapes(model, 8)
