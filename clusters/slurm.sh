#!/bin/bash
# Four machines of eight GPUs under Slurm: sbatch clusters/slurm.sh recipes/full/cover_b.yaml
#
# Five minutes before the end Slurm sends SIGTERM: the run saves, and Slurm starts it again. --requeue then goes on.
#SBATCH --job-name=cover
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240  # longer than a checkpoint takes
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
    --rdzv-id "$SLURM_JOB_ID" --max-restarts 3 -m cover train "$@" --requeue
