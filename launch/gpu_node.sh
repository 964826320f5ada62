#!/usr/bin/env bash
# Trains on one or several machines with NVIDIA GPUs.
#
#   bash launch/gpu_node.sh configs/cifar10.py [--config.a.b=value ...]                  this machine, all its GPUs
#   HOSTS="node1 node2" bash launch/gpu_node.sh configs/imagenet_small.py ...            several, by ssh
#   NODES=2 bash launch/gpu_node.sh configs/imagenet_small.py ...                        several, by SLURM (srun)
#   bash launch/gpu_node.sh --dry-run ...                                                prints the commands, runs nothing
#
# With several machines, the repository and the workdir must be in a shared folder with the same path on all of them.
#   WORKDIR  (default runs/<config>)      PORT  port of the first process (default 29500)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/environment.sh
source launch/environment.sh
read_arguments "$@"
workdir="${WORKDIR:-runs/$(basename "$config" .py)}"
read -r -a hosts <<<"${HOSTS:-}"
words=(train --config "$config" --workdir "$workdir" "${overrides[@]}")

# The environment of the other scripts, with JAX for CUDA in it.
if [[ $dry == 0 ]]; then
    prepare_environment
    "$VENV_PYTHON" -c 'import jax_cuda12_plugin' 2>/dev/null || "$VENV_PYTHON" -m pip install --quiet -e '.[cuda]'
fi
python=".venv/bin/python"

if [[ -n "${NODES:-}" ]]; then
    run srun --nodes "$NODES" --ntasks-per-node 1 --gpus-per-node "${GPUS:-8}" --kill-on-bad-exit 1 \
        "$python" -m prance_jax "${words[@]}" --distributed auto
elif ((${#hosts[@]} > 1)); then
    processes=()
    for index in "${!hosts[@]}"; do
        remote="cd $(printf '%q' "$PWD") && $python -m prance_jax $(printf '%q ' "${words[@]}")"
        remote+="--distributed ${hosts[0]}:${PORT:-29500},${#hosts[@]},$index"
        if [[ $dry == 1 ]]; then
            run ssh "${hosts[$index]}" "$remote"
        else
            ssh -tt "${hosts[$index]}" "$remote" &
            processes+=($!)
        fi
    done
    # If a process fails, the others would wait for it forever, so they are stopped.
    for _ in "${processes[@]}"; do
        wait -n || {
            kill "${processes[@]}" 2>/dev/null || true
            exit 1
        }
    done
else
    run "$python" -m prance_jax "${words[@]}"
fi
