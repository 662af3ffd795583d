"""Data-parallel training: the devices that share each batch, in one process or in several.

The mesh is one row of devices. Every device holds the whole state and its part of each batch.
``jax.jit`` adds the communication, so the train step is the one of a single device and has the same
results up to rounding.

Several processes take the same steps, each with its own rows of every batch. Whatever decides what
comes next must be the same in all of them, so all processes call these functions in the same order.
"""

import contextlib
import os
import re
import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from arsam_jax import parallel
from examples.common.errors import ConfigError

TIMEOUT = 60  # seconds without a sign of life after which a process counts as lost


def connect(place: str) -> None:
    """Connects this process with the others, before any device is used.

    Args:
      place: ``auto`` under SLURM, Open MPI, Kubernetes or on Cloud TPU. Otherwise
        ``INDEX/NUMBER@HOST:PORT`` with the address of process 0.

    Raises:
      ConfigError: if ``place`` has another form, or JAX finds no cluster.
    """
    match = re.fullmatch(r"(\d+)/(\d+)@(\S+:\d+)", place)
    if match is None and place != "auto":
        raise ConfigError(
            f"--processes must be auto or INDEX/NUMBER@HOST:PORT, such as 0/2@127.0.0.1:9876, not"
            f" {place}"
        )
    # With several CPU devices in a process, those that are done wait for the one that waits for
    # other processes. XLA's own limit is 40 s. A flag that is already set comes later and wins.
    flag = f"--xla_cpu_collective_call_terminate_timeout_seconds={TIMEOUT}"
    os.environ["XLA_FLAGS"] = f"{flag} {os.environ.get('XLA_FLAGS', '')}"
    try:
        jax.distributed.initialize(
            match and match[3],
            match and int(match[2]),
            match and int(match[1]),
            heartbeat_timeout_seconds=TIMEOUT,
            shutdown_timeout_seconds=TIMEOUT,
        )
    except ValueError as error:
        raise ConfigError(
            f"--processes {place}: {error} If JAX finds no cluster here, give"
            " --processes INDEX/NUMBER@HOST:PORT in each process"
        ) from error


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return jax.process_index() == 0


def decided_by_main(decision: bool) -> bool:
    """Returns the decision of the main process in every process."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(decision)))


def require_same(what: str, value: Any) -> None:
    """Waits for all processes and compares.

    Raises:
      ConfigError: in every process, unless all have a ``value`` with the same ``repr``.
    """
    digests = parallel.of_all_processes(np.uint32(zlib.crc32(repr(value).encode())))
    if len(np.unique(digests)) > 1:
        raise ConfigError(
            f"the processes differ in {what}: process {jax.process_index()} has {value!r}. Give all"
            " the same arguments and one shared --output"
        )


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
    own, total = jax.local_device_count(), jax.device_count()
    if total != own * jax.process_count():
        raise ConfigError(
            f"every process needs the same number of devices; this one has {own} of {total}"
        )
    if num_devices > own:
        raise ConfigError(
            f"--devices {num_devices}, but a process has {own} ({jax.default_backend()})"
        )
    if not num_devices:
        num_devices = own if jax.distributed.is_initialized() else 1
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(-1, own)[:, :num_devices].ravel(), ("batch",))


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
