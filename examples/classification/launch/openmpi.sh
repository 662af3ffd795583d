#!/bin/bash
# Open MPI 4: bash examples/classification/launch/openmpi.sh [ARGUMENTS], in the repository's folder.
# HOSTS is host:processes, comma-separated, with one process for each GPU.
# JAX looks for OMPI_MCA_orte_hnp_uri, which mpirun of Open MPI 5 does not set.
set -euo pipefail

name=openmpi
resume=$([[ -f runs/$name/config.json ]] && echo --resume || true)

# mpirun only starts the processes; they talk over JAX's own connections, not MPI.
mpirun --host "${HOSTS:-localhost:2}" --bind-to none \
    .venv/bin/python -m examples.classification.multihost --name "$name" $resume "$@"
