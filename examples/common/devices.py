"""The devices that share each batch, in one process or in several: data-parallel training.

One row of devices, the mesh. The parameters and all other state are whole on every device; of a
batch each has its part. ``jax.jit`` adds what they must tell each other, so the train step is the
one of a single device and has its results, to rounding.
"""

import contextlib
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from examples.common.errors import ConfigError


def make_mesh(num_devices: int) -> Mesh:
    """A row of ``num_devices`` of each process; the processes one after another.

    CPU devices are made, as many as are needed, unless a backend has started already.

    Args:
      num_devices: 0 for one, or for all of each process after ``jax.distributed.initialize()``.

    Raises:
      ConfigError: where there are fewer.
    """
    if num_devices > 1:
        # XLA:CPU has one thread a device; steps that overlap can take all and wait forever.
        os.environ.setdefault("NPROC", str(4 * num_devices))
        with contextlib.suppress(RuntimeError):  # a backend has started: it has what it has
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
    """Every device has all of an array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Each device has its part of the rows of an array."""
    return NamedSharding(mesh, PartitionSpec("batch"))


def own_rows(batch_size: int) -> slice:
    """Those of a batch's rows that go to the devices of this process."""
    size = batch_size // jax.process_count()
    return slice(jax.process_index() * size, (jax.process_index() + 1) * size)


def join(mesh: Mesh, arrays: Any) -> Any:
    """Makes arrays of the whole batch from the rows that each process has."""
    if jax.process_count() == 1:
        return arrays  # a jitted function splits them itself, and in less time
    return _global(split(mesh), arrays)


def replicate(mesh: Mesh, arrays: Any) -> Any:
    """Puts arrays, equal in all processes, on every device."""
    if jax.process_count() == 1:
        return jax.device_put(arrays, whole(mesh))
    return _global(whole(mesh), jax.device_get(arrays))


def _global(sharding: NamedSharding, arrays: Any) -> Any:
    return jax.tree.map(
        lambda local: jax.make_array_from_process_local_data(sharding, local), arrays
    )


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values))
