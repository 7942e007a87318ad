#!/bin/bash
# Train on machines of a Slurm cluster. Before its time is up the training saves a checkpoint, the
# job queues again, and goes on from there. In the environment that has loraqa:
#
#     sbatch recipes/slurm.sh recipes/train.yaml runs/squad
#     sbatch --nodes 4 --gpus-per-node 8 recipes/slurm.sh recipes/train.yaml runs/squad
#
# The run, the data and the environment are on a file system that all machines share.
#
#SBATCH --job-name=loraqa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

settings=${1:?name a settings file, such as recipes/train.yaml}
run=${2:?name a folder for the run}

resume=()
if [[ -e $run/settings.yaml ]]; then
    resume=(--resume)
fi

first_machine=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))

# Each machine has a SLURM_NODEID of its own, which this script does not know.
# shellcheck disable=SC2016
srun bash -c 'exec torchrun --node-rank "$SLURM_NODEID" "$@"' torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "${PROCESSES:-gpu}" \
    --master-addr "$first_machine" \
    --master-port "$port" \
    --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --shutdown-timeout 240 \
    -m loraqa train "$settings" --out "$run" "${resume[@]}" &
training=$!

# Slurm sends SIGTERM 300 seconds before the end, to this script alone. It passes the signal on to the
# processes of the training; srun would kill them.
stopped=
trap 'stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM

status=0
wait "$training" || status=$?
if [[ -n $stopped ]]; then
    # The signal ended the first wait, not the training.
    status=0
    wait "$training" || status=$?
fi
if [[ -n $stopped && $status -ne 0 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
    status=0
fi
exit "$status"
