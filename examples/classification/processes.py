"""What the processes of one run must agree on; a run of one process agrees with itself.

They take the same steps, each with its own rows of every batch, so whatever decides what comes
next has to be the same in all of them. All must call these functions, in the same order.
"""

import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from arsam_jax import parallel


class DisagreementError(Exception):
    """The processes cannot go on together; the message says in what they differ."""


def is_main() -> bool:
    """Whether this is the process that prints, and writes tables, plots and JSON files."""
    return jax.process_index() == 0


def decided_by_main(decision: bool) -> bool:
    """The decision of the main process, in every process."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(decision)))


def require_same(what: str, value: Any) -> None:
    """Waits for all processes, then compares.

    Raises:
      DisagreementError: in every process, unless all have a ``value`` with the same ``repr``.
    """
    digests = parallel.of_all_processes(np.uint32(zlib.crc32(repr(value).encode())))
    if len(np.unique(digests)) > 1:
        raise DisagreementError(
            f"the processes differ in {what}; process {jax.process_index()} has {value!r}"
        )
