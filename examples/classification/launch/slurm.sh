#!/bin/bash
# SLURM: sbatch examples/classification/launch/slurm.sh [ARGUMENTS], in the repository's folder.
#SBATCH --job-name=arsam
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4    # one process for each GPU: JAX gives a process one
#SBATCH --gpus-per-node=4
#SBATCH --time=01:00:00
#SBATCH --signal=TERM@120      # save and stop two minutes before the time is over
#SBATCH --output=%x-%j.log
set -euo pipefail

# The same command again goes on with the run: a folder that has settings is resumed.
name=slurm
resume=$([[ -f runs/$name/config.json ]] && echo --resume || true)

# JAX reads SLURM's variables. One lost process ends the step, with an error.
srun --kill-on-bad-exit=1 \
    .venv/bin/python -m examples.classification --processes auto --name "$name" $resume "$@"
