#!/usr/bin/env bash
# One process per node, found by JAX through SLURM; requeued on preemption, goes on from its checkpoint.
#   sbatch --nodes 2 launch/slurm.sh --config configs/published/emotion2vec_s.py --workdir SHARED/run
#SBATCH --job-name=c2ser_jax
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail
exec srun --kill-on-bad-exit=1 python -m c2ser_jax.train --no-progress "$@"
