"""Read and write trained weights with the names and layouts of PyTorch.

A file is a ``.safetensors`` of a ``state_dict``. PyTorch converts a ``.pth``::

    state_dict = torch.load("weights.pth", weights_only=True)
    safetensors.torch.save_file(state_dict, "weights.safetensors")

A function maps modules of a Flax model to modules of PyTorch::

    def torch_name(path):  # ("layer1_0", "conv1") -> "layer1.0.conv1"
        return ".".join(path).replace("_", ".")

    variables = fill(model.init(key, images), load(file), torch_name)
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from examples.common.checkpoints import write_bytes
from examples.common.errors import DataError
from examples.common.reading import reading

TorchName = Callable[[tuple[str, ...]], str | None]
"""From the path of a module in a tree of variables to PyTorch's name, or None."""

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "embedding"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_MOST_NAMES = 8  # in a message


def load(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file, by name.

    Raises:
      DataError: If the file cannot be read, or is of another kind.
    """
    with reading(path, "a file of weights", "Save it again."):
        return safetensors.numpy.load(path.read_bytes())


def save(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Write a .safetensors file that ``load`` reads, atomically."""
    contiguous = {name: np.ascontiguousarray(value) for name, value in weights.items()}
    write_bytes(path, safetensors.numpy.save(contiguous))


def fill(
    variables: Mapping[str, Any], weights: Mapping[str, np.ndarray], torch_name: TorchName
) -> dict[str, Any]:
    """Replace variables by the values of a file.

    Kernels (..., inputs, outputs) of linear layers and of all kinds of convolutions have the layout
    (outputs, inputs, ...) in PyTorch. BatchNorm's scale, bias, mean and var are named weight, bias,
    running_mean and running_var.

    Args:
      variables: Variables of a Flax model: ``params`` and, if there are any, ``batch_stats``.
      weights: Arrays by PyTorch's names. Additional arrays are ignored.
      torch_name: The name of a module. If it is None, the module keeps its values. So do variables
        without a counterpart in PyTorch's layers, such as the step size of a quantizer.

    Raises:
      DataError: If names are missing or shapes differ. The message lists them.
    """
    flat = _flat(variables)
    filled, missing, wrong = dict(flat), [], []
    for path, name in _names(flat, torch_name).items():
        expected = _torch_shape(flat[path].shape, path)
        if name not in weights:
            missing.append(name)
        elif weights[name].shape != expected:
            wrong.append(f"{name} {weights[name].shape}, not {expected}")
        else:
            filled[path] = jnp.array(_from_torch(weights[name], path), flat[path].dtype)
    parts = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("names are missing", missing), ("shapes are wrong", wrong))
        if names
    ]
    if parts:
        raise DataError(
            f"--weights has the weights of another network. {'; '.join(parts)}. Use weights of the"
            " --network."
        )
    return traverse_util.unflatten_dict(filled)


def to_torch(variables: Mapping[str, Any], torch_name: TorchName) -> dict[str, np.ndarray]:
    """Return the variables that have a name, in PyTorch's layout. The inverse of ``fill``."""
    flat = _flat(variables)
    names = _names(flat, torch_name)
    return {name: _to_torch(np.asarray(flat[path]), path) for path, name in names.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (" …" if len(names) > _MOST_NAMES else "")


def _flat(variables: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(dict(variables))


def _names(flat: Mapping[tuple[str, ...], Any], torch_name: TorchName) -> dict[Any, str]:
    """Return the names of leaves that have one, by path."""
    names = {}
    for path in flat:
        collection, *module, leaf = path
        name = torch_name(tuple(module))
        if name is not None and (collection, leaf) in _LEAVES:
            names[path] = f"{name}.{_LEAVES[collection, leaf]}"
    return names


def _from_torch(value: np.ndarray, path: tuple[str, ...]) -> np.ndarray:
    return np.moveaxis(value, (1, 0), (-2, -1)) if path[-1] == "kernel" else value


def _to_torch(value: np.ndarray, path: tuple[str, ...]) -> np.ndarray:
    return np.moveaxis(value, (-2, -1), (1, 0)) if path[-1] == "kernel" else value


def _torch_shape(shape: tuple[int, ...], path: tuple[str, ...]) -> tuple[int, ...]:
    return (*shape[:-3:-1], *shape[:-2]) if path[-1] == "kernel" else shape
