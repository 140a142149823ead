#!/usr/bin/env bash
# Fine-tuning on several machines: sbatch training/accelerate_configs/slurm.sh --recipe ... --output_dir ...
#SBATCH --job-name=flux-hf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=8

# A job that was cut off or requeued goes on from its last checkpoint.
srun accelerate launch \
    --config_file training/accelerate_configs/multi_node.yaml \
    --num_machines "$SLURM_NNODES" \
    --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
    --rdzv_backend c10d \
    --main_process_ip "$head_node" \
    --main_process_port 29500 \
    -m training.finetune --resume_from_checkpoint latest "$@"
