"""Weights with PyTorch's names: layouts, round trips through files, and errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.common import weights
from examples.common.errors import DataError

pytestmark = pytest.mark.usefixtures("standard_promotion")

IMAGE = np.random.default_rng(0).normal(size=(1, 6, 6, 4)).astype(np.float32)


class Network(nn.Module):
    """One of each layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 2), padding="VALID", use_bias=False, name="layer1_0_conv1")(x)
        x = nn.BatchNorm(use_running_average=True, name="layer1_0_bn1")(x)
        x = nn.Conv(8, (3, 3), padding="VALID", feature_group_count=8, name="depthwise")(x)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


def torch_name(path):
    (name,) = path
    return None if name == "head" else name.replace("_", ".")


@pytest.fixture(scope="module")
def variables(standard_promotion):
    return Network().init(jax.random.key(0), IMAGE)


@pytest.fixture
def stored():
    """A state_dict of other values."""
    shapes = {
        "layer1.0.conv1.weight": (8, 4, 3, 2),
        "layer1.0.bn1.weight": (8,),
        "layer1.0.bn1.bias": (8,),
        "layer1.0.bn1.running_mean": (8,),
        "layer1.0.bn1.running_var": (8,),
        "depthwise.weight": (8, 1, 3, 3),
        "depthwise.bias": (8,),
        "head.weight": (5, 8),
        "head.bias": (5,),
    }
    rng = np.random.default_rng(1)
    values = {name: rng.uniform(0.5, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    return values | {"layer1.0.bn1.num_batches_tracked": np.array(3)}


def reference(stored, image):
    """Return the network's output by PyTorch's definitions of its layers."""

    def convolve(x, kernel):  # (out, height, width) from (in, height, width), (out, in, h, w)
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(1, 2))
        return np.einsum("cyxhw,ochw->oyx", windows, kernel)

    bn = {name: stored[f"layer1.0.bn1.{name}"][:, None, None] for name in BATCH_NORM}
    x = convolve(image[0].transpose(2, 0, 1), stored["layer1.0.conv1.weight"])
    x = (x - bn["running_mean"]) / np.sqrt(bn["running_var"] + 1e-5) * bn["weight"] + bn["bias"]
    kernels = stored["depthwise.weight"]
    x = np.concatenate([convolve(x[i : i + 1], kernels[i : i + 1]) for i in range(8)])
    x = x.mean((1, 2)) + stored["depthwise.bias"]
    return stored["head.weight"] @ x + stored["head.bias"]


BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def test_a_filled_network_computes_what_torch_would(variables, stored):
    filled = weights.fill(variables, stored, lambda path: path[0].replace("_", "."))
    output = Network().apply(filled, IMAGE)
    np.testing.assert_allclose(output[0], reference(stored, IMAGE), rtol=1e-4)
    assert jax.tree.map(jnp.shape, filled) == jax.tree.map(jnp.shape, variables)
    # Modules without a name keep their values.
    partly = weights.fill(variables, stored, torch_name)["params"]
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(partly["head"][name], variables["params"]["head"][name])
        np.testing.assert_array_equal(
            partly["depthwise"][name], filled["params"]["depthwise"][name]
        )


def test_a_round_trip_through_a_file_changes_no_bit(variables, stored, tmp_path):
    file = tmp_path / "weights.safetensors"
    filled = weights.fill(variables, stored, torch_name)
    weights.save(file, weights.to_torch(filled, torch_name))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    read = weights.load(file)
    assert read.keys() == {name for name in stored if "head" not in name and "num" not in name}
    for name, value in read.items():
        np.testing.assert_array_equal(value, stored[name])
    again = weights.fill(variables, read, torch_name)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again, filled)))


def test_names_and_shapes_that_do_not_fit_are_listed(variables, stored):
    del stored["layer1.0.bn1.running_var"], stored["depthwise.weight"]
    stored["layer1.0.conv1.weight"] = stored["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)
    with pytest.raises(DataError) as error:
        weights.fill(variables, stored, torch_name)
    for part in (
        "2 names are missing: ",
        "depthwise.weight",
        "layer1.0.bn1.running_var",
        "1 shapes are wrong: layer1.0.conv1.weight (3, 2, 4, 8), not (8, 4, 3, 2)",
    ):
        assert part in str(error.value)
