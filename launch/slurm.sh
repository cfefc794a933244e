#!/bin/bash
# One process per GPU on any number of SLURM nodes; arguments are those of dml_jax.train.
#
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh \
#       --config=configs/NAME.py --workdir=/shared/runs/NAME
#
# The work folder must be on storage that all nodes share. SLURM tells every process its place (--cluster), and a job
# that is preempted gets SIGTERM two minutes before the end: the run writes a checkpoint, and the requeued job goes on
# from it. The batch size must be a multiple of the number of GPUs.
#SBATCH --job-name=dml_jax
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# Huge pages for large arrays of the host.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
exec srun --kill-on-bad-exit=1 python -m dml_jax.train --cluster "$@"
