"""Several processes that train one run together: how they start, and what they must agree on.

They take the same steps, each with its own rows of every batch. Whatever decides what comes next
must be the same in all of them, so all processes call the functions below in the same order.
"""

import os
import re
import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from arsam_jax import parallel
from examples.common.errors import ConfigError

TIMEOUT = 60  # seconds without a sign of life after which a process counts as lost


def join(place: str) -> None:
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
