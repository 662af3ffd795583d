#!/bin/bash
# Cloud TPU: TPU=NAME ZONE=ZONE bash examples/classification/launch/cloud_tpu.sh [ARGUMENTS], from a workstation.
# Runs one process on each host of the slice; JAX finds the others in the TPU's metadata.
# The repository and its .venv (with the extra "tpu") are in ~/arsam on every host; OUTPUT is a
# folder that all hosts share (NFS), or a run cannot be resumed.
set -euo pipefail

name=cloud_tpu
output=${OUTPUT:?a folder on a file system that all hosts share}

gcloud compute tpus tpu-vm ssh "${TPU:?}" --zone "${ZONE:?}" --worker=all --command "
    cd ~/arsam &&
    resume=\$(if [ -f $output/$name/config.json ]; then echo --resume; fi) &&
    .venv/bin/python -m examples.classification.multihost --output $output --name $name \$resume $*"
