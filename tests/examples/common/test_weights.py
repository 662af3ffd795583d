"""Weights under PyTorch's names: layouts, files, round trips, and what is refused."""

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
    rng, shapes = (
        np.random.default_rng(1),
        {
            "layer1.0.conv1.weight": (8, 4, 3, 2),
            "layer1.0.bn1.weight": (8,),
            "layer1.0.bn1.bias": (8,),
            "layer1.0.bn1.running_mean": (8,),
            "layer1.0.bn1.running_var": (8,),
            "depthwise.weight": (8, 1, 3, 3),
            "depthwise.bias": (8,),
            "head.weight": (5, 8),
            "head.bias": (5,),
        },
    )
    values = {name: rng.uniform(0.5, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    return values | {"layer1.0.bn1.num_batches_tracked": np.array(3)}


def reference(stored, image):
    """The network's output by PyTorch's definitions of its layers."""

    def convolve(x, kernel):  # (out, height, width) of (in, height, width), (out, in, h, w)
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(1, 2))
        return np.einsum("cyxhw,ochw->oyx", windows, kernel)

    def of_channels(name):
        return stored[name][:, None, None]

    x = convolve(image[0].transpose(2, 0, 1), stored["layer1.0.conv1.weight"])
    x = (x - of_channels("layer1.0.bn1.running_mean")) / np.sqrt(
        of_channels("layer1.0.bn1.running_var") + 1e-5
    )
    x = x * of_channels("layer1.0.bn1.weight") + of_channels("layer1.0.bn1.bias")
    kernels = stored["depthwise.weight"]
    x = np.concatenate([convolve(x[i : i + 1], kernels[i : i + 1]) for i in range(8)])
    x = (x + of_channels("depthwise.bias")).mean((1, 2))
    return stored["head.weight"] @ x + stored["head.bias"]


def test_a_filled_network_computes_what_torch_would(variables, stored):
    filled = weights.fill(variables, stored, lambda path: path[0].replace("_", "."))
    output = Network().apply(filled, IMAGE)
    np.testing.assert_allclose(output[0], reference(stored, IMAGE), rtol=1e-4)


def test_modules_without_a_name_keep_their_values(variables, stored):
    filled = weights.fill(variables, stored, torch_name)
    same = jax.tree.map(np.array_equal, filled["params"]["head"], variables["params"]["head"])
    assert all(jax.tree.leaves(same))
    depthwise = filled["params"]["depthwise"]["kernel"]
    np.testing.assert_array_equal(depthwise[1, 2, 0, 5], stored["depthwise.weight"][5, 0, 1, 2])
    assert jax.tree.map(jnp.shape, filled) == jax.tree.map(jnp.shape, variables)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_round_trip_through_a_file_changes_no_bit(suffix, variables, stored, tmp_path):
    file = tmp_path / f"weights{suffix}"
    filled = weights.fill(variables, stored, torch_name)
    weights.save(file, weights.to_torch(filled, torch_name))
    read = weights.load(file)
    assert read.keys() == {name for name in stored if "head" not in name and "num" not in name}
    for name, value in read.items():
        np.testing.assert_array_equal(value, stored[name])
    again = weights.fill(variables, read, torch_name)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again, filled)))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_what_does_not_fit_is_listed(variables, stored):
    del stored["layer1.0.bn1.running_var"], stored["depthwise.weight"]
    stored["layer1.0.conv1.weight"] = stored["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)
    with pytest.raises(DataError) as error:
        weights.fill(variables, stored, torch_name)
    message = str(error.value)
    assert "2 names are missing: " in message
    assert "depthwise.weight" in message
    assert "layer1.0.bn1.running_var" in message
    assert "1 shapes are wrong: layer1.0.conv1.weight (3, 2, 4, 8), not (8, 4, 3, 2)" in message


def test_two_modules_of_one_name_are_an_error(variables):
    with pytest.raises(ValueError, match=r"two modules have the name of same\.bias"):
        weights.to_torch(variables, lambda path: "same")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_that_is_damaged_missing_or_of_another_kind_is_an_error(suffix, stored, tmp_path):
    file = tmp_path / f"weights{suffix}"
    with pytest.raises(DataError, match=f"{file} cannot be read"):
        weights.load(file)
    weights.save(file, stored)
    for damaged in (file.read_bytes()[:100], b"", b"not weights"):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=str(file)):
            weights.load(file)
    with pytest.raises(DataError, match=r"neither \.npz nor \.safetensors"):
        weights.load(tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"neither \.npz nor \.safetensors"):
        weights.save(tmp_path / "weights.pth", stored)
