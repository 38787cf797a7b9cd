#!/usr/bin/env bash
# One process per GPU, found by JAX through SLURM; requeued on preemption, goes on from its checkpoint.
# JAX gives the process with the local number n GPU n of its node: tasks and GPUs per node must be equal.
#   sbatch --nodes 2 launch/slurm.sh --config configs/published/emotion2vec_s.py --workdir SHARED/run
#SBATCH --job-name=c2ser_jax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail
exec srun --kill-on-bad-exit=1 python -m c2ser_jax.train --no-progress "$@"
