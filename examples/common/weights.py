"""Trained weights from files, and in files, under the names and in the layouts of PyTorch.

A file is ``.npz`` or ``.safetensors`` and holds a ``state_dict``. PyTorch makes one of a ``.pth``::

    state_dict = torch.load("weights.pth", weights_only=True)
    safetensors.torch.save_file(state_dict, "weights.safetensors")

A rule says which of PyTorch's modules a module of ours is::

    def torch_name(path):  # ("layer1_0", "conv1") -> "layer1.0.conv1"
        return ".".join(path).replace("_", ".")

    variables = fill(model.init(key, images), load(file), torch_name)
"""

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from examples.common.errors import DataError
from examples.common.reading import check_size, reading
from examples.common.records import write_bytes

TorchName = Callable[[tuple[str, ...]], str | None]
"""From the path of a module in a tree of variables to PyTorch's name; None if it has none."""

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "embedding"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_SHOWN = 8  # names in a message


def load(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file, by name.

    Raises:
      DataError: If the file cannot be read, or is of another kind.
    """
    with reading(path, "a file of weights", "Save it again."):
        match path.suffix:
            case ".npz":
                with zipfile.ZipFile(path) as archive:
                    check_size(path, sum(member.file_size for member in archive.infolist()))
                with np.load(path, allow_pickle=False) as file:
                    weights = dict(file)
            case ".safetensors":
                weights = safetensors.numpy.load(path.read_bytes())
            case _:
                raise DataError(
                    f"{path} is neither .npz nor .safetensors. See examples/common/weights.py."
                )
    for name, value in weights.items():
        if not isinstance(value, np.ndarray) or not jnp.issubdtype(value.dtype, jnp.number):
            raise DataError(f"{name} in {path} is not an array of numbers. Save it again.")
    return weights


def save(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Writes a file that ``load`` reads, whole or not at all.

    Raises:
      ValueError: if it is to be neither .npz nor .safetensors.
    """
    if path.suffix == ".npz":
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **dict(weights))
        write_bytes(path, content.getvalue())
    elif path.suffix == ".safetensors":
        whole = {name: np.ascontiguousarray(value) for name, value in weights.items()}
        write_bytes(path, safetensors.numpy.save(whole))
    else:
        raise ValueError(f"{path} is neither .npz nor .safetensors")


def fill(
    variables: Mapping[str, Any], weights: Mapping[str, np.ndarray], torch_name: TorchName
) -> dict[str, Any]:
    """Variables with the values that a file has for them.

    Kernels (..., inputs, outputs), of linear layers and of convolutions in any number of
    dimensions, are PyTorch's (outputs, inputs, ...). So are those of grouped and depthwise
    convolutions, whose inputs are a group's. BatchNorm's scale, bias, mean and var are weight,
    bias, running_mean and running_var.

    Args:
      variables: of a Flax model: ``params`` and, if there are any, ``batch_stats``.
      weights: by PyTorch's names. What no module asks for is not looked at.
      torch_name: modules of which it gives None keep their values, and so does all that has no
        counterpart in PyTorch's layers, a quantizer's step size for one.

    Raises:
      DataError: if names are missing, or arrays have another shape; it lists them.
    """
    flat = _flat(variables)
    filled, missing, wrong = dict(flat), [], []
    for path, name in _names(flat, torch_name).items():
        if name not in weights:
            missing.append(name)
            continue
        expected = _torch_shape(flat[path].shape, path)
        if weights[name].shape != expected:
            wrong.append(f"{name} {weights[name].shape}, not {expected}")
            continue
        filled[path] = jnp.array(_from_torch(weights[name], path), flat[path].dtype)
    parts = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{' …' if len(names) > _SHOWN else ''}"
        for what, names in (("names are missing", missing), ("shapes are wrong", wrong))
        if names
    ]
    if parts:
        raise DataError(f"--weights: these are another network's. {'; '.join(parts)}.")
    return traverse_util.unflatten_dict(filled)


def to_torch(variables: Mapping[str, Any], torch_name: TorchName) -> dict[str, np.ndarray]:
    """The inverse of ``fill``: what variables have a name for, under that and in its layout.

    Raises:
      ValueError: if the rule gives one name to two modules.
    """
    flat = _flat(variables)
    names = _names(flat, torch_name)
    twice = sorted(name for name in {*names.values()} if [*names.values()].count(name) > 1)
    if twice:
        raise ValueError(f"two modules have the name of {', '.join(twice[:_SHOWN])}")
    return {name: _to_torch(np.asarray(flat[path]), path) for path, name in names.items()}


def _flat(variables: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(dict(variables))


def _names(flat: Mapping[tuple[str, ...], Any], torch_name: TorchName) -> dict[Any, str]:
    """The names of those leaves that have one, by their paths."""
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
