#!/usr/bin/env bash
# The same command on every host of a TPU pod; JAX finds the hosts by itself.
#   launch/tpu_pod.sh NAME ZONE DIRECTORY --config configs/published/emotion2vec_s.py --workdir SHARED/run
# DIRECTORY holds this project, installed, on every host; SHARED is a file system that all hosts mount.
set -euo pipefail
name=$1 zone=$2 directory=$3
shift 3
printf -v arguments '%q ' "$@"
exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all \
  --command "cd $directory && python -m c2ser_jax.train --no-progress $arguments"
