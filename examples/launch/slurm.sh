#!/usr/bin/env bash
# Two machines of a Slurm cluster:
#
#   sbatch slurm.sh --model MODEL --dataset DATASET --output_dir /shared/out
#
#SBATCH --job-name=bitdistill
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
# One torchrun a machine, which starts a process for each GPU.
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
# A job that starts again goes on where it stopped.
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Two jobs may share a machine.
PORT=$((20000 + SLURM_JOB_ID % 10000))
# Threads of each process, of the 64 above.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"

srun torchrun \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${GPUS:-8}" \
  --rdzv-backend=c10d --rdzv-endpoint="$HEAD:$PORT" --rdzv-id="$SLURM_JOB_ID" \
  -m hf_bitdistill run "$@"
