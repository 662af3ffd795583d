"""``python -m examples.classification`` in several processes, of one machine or of many.

Under SLURM, Open MPI, Kubernetes or on Cloud TPU, start this in every process as it is: JAX finds
out which process it is. By hand, on one machine, it is

    run="python -m examples.classification.multihost --coordinator 127.0.0.1:9876"
    $run --num-processes 2 --process-id 0 &
    $run --num-processes 2 --process-id 1

All need the same settings and one folder for the output. All other arguments are those of
``python -m examples.classification``, which ``--help`` there shows.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

import jax

from examples.classification.__main__ import main as train


def main(arguments: Sequence[str] | None = None) -> int:
    """Joins the other processes, then trains with them; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.classification.multihost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, by hand")
    parser.add_argument("--num-processes", type=int, help="how many there are, by hand")
    parser.add_argument("--process-id", type=int, help="which one this is, from 0, by hand")
    parser.add_argument(
        "--timeout",
        type=int,
        default=60,
        help="seconds without a sign of life after which a process counts as lost (default 60)",
    )
    own, others = parser.parse_known_args(arguments)
    if own.timeout < 1:
        parser.error("--timeout must be at least 1")
    # Of several CPU devices here, those that are through wait for the one that waits for other
    # processes; XLA's own limit is 40 s. A flag that is set already comes later and wins.
    os.environ["XLA_FLAGS"] = (
        f"--xla_cpu_collective_call_terminate_timeout_seconds={own.timeout} "
        + os.environ.get("XLA_FLAGS", "")
    )
    try:
        jax.distributed.initialize(
            own.coordinator,
            own.num_processes,
            own.process_id,
            heartbeat_timeout_seconds=own.timeout,
            shutdown_timeout_seconds=own.timeout,
        )
    except ValueError as error:
        parser.error(
            f"{error} JAX found no cluster here; give --coordinator, --num-processes and"
            " --process-id"
        )
    try:
        return train(others, prog=parser.prog)
    except (Exception, KeyboardInterrupt):
        traceback.print_exc()
        print("Was another process lost? Start all again with --resume.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # the usual exit waits for the other processes, and one may be dead


if __name__ == "__main__":
    sys.exit(main())
