"""Data-parallel training: the devices that share each batch, in one process or in several.

The mesh is one row of devices. Every device holds the whole state and its part of each batch.
``jax.jit`` adds the communication, so the train step is the one of a single device and has the same
results up to rounding.
"""

import contextlib
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from examples.common.errors import ConfigError


def make_mesh(num_devices: int) -> Mesh:
    """A row with ``num_devices`` devices of each process.

    CPU devices are created as needed, unless a backend has already started.

    Args:
      num_devices: 0 means one, or all of each process after ``jax.distributed.initialize()``.

    Raises:
      ConfigError: if there are fewer devices.
    """
    if num_devices > 1:
        # XLA:CPU has one thread per device. Overlapping steps can take all and wait forever.
        os.environ.setdefault("NPROC", str(4 * num_devices))
        with contextlib.suppress(RuntimeError):  # a backend has already started
            jax.config.update("jax_num_cpu_devices", num_devices)
    of_process = [[] for _ in range(jax.process_count())]
    for device in sorted(jax.devices(), key=lambda device: device.id):
        of_process[device.process_index].append(device)
    counts = [len(own) for own in of_process]
    if len(set(counts)) > 1:
        raise ConfigError(
            f"every process needs the same number of devices, they have {_list(counts)}"
        )
    if num_devices > counts[0]:
        raise ConfigError(
            f"--devices {num_devices}, but there are {counts[0]} ({jax.default_backend()})"
            + (" in each process" if len(counts) > 1 else "")
        )
    if not num_devices:
        num_devices = counts[0] if jax.distributed.is_initialized() else 1
    return Mesh(np.array([own[:num_devices] for own in of_process]).reshape(-1), ("batch",))


def whole(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Each device holds its part of the rows of an array."""
    return NamedSharding(mesh, PartitionSpec("batch"))


def own_rows(batch_size: int) -> slice:
    """The rows of a batch that go to the devices of this process."""
    size = batch_size // jax.process_count()
    return slice(jax.process_index() * size, (jax.process_index() + 1) * size)


def join(mesh: Mesh, arrays: Any) -> Any:
    """Combines the rows that each process has into arrays of the whole batch."""
    if jax.process_count() == 1:
        return arrays  # a jitted function splits them faster
    return _global(split(mesh), arrays)


def replicate(mesh: Mesh, arrays: Any) -> Any:
    """Puts arrays that are equal in all processes on every device."""
    if jax.process_count() == 1:
        return jax.device_put(arrays, whole(mesh))
    return _global(whole(mesh), jax.device_get(arrays))


def local(mesh: Mesh, arrays: Any) -> Any:
    """The arrays of ``replicate`` on one device of this process, for work without the others."""
    if mesh.size == 1:
        return arrays
    return jax.tree.map(lambda x: x.addressable_data(0), arrays)


def _global(sharding: NamedSharding, arrays: Any) -> Any:
    return jax.tree.map(
        lambda local: jax.make_array_from_process_local_data(sharding, local), arrays
    )


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values))
