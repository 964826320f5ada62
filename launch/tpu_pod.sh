#!/usr/bin/env bash
# Trains on a TPU slice: creates the slice or uses an existing one, installs on every worker, runs, and copies the
# workdir back. If a worker is preempted, it creates the slice again and the run continues from its last checkpoint.
#
#   NAME=prance ZONE=us-west4-a TYPE=v5litepod-32 BUCKET=my-bucket DATA=/mnt/run/imagenet \
#       bash launch/tpu_pod.sh configs/imagenet_small.py [--config.a.b=value ...]
#   bash launch/tpu_pod.sh --dry-run configs/imagenet_small.py     prints the commands, runs nothing
#
# BUCKET holds the workdir, and optionally the data. It is mounted on every worker as /mnt/run (Cloud Storage FUSE). Give
# it a hierarchical namespace: folders are then renamed atomically, so no half-written checkpoint is ever visible.
#   NAME     name of the slice (default prance)   ZONE     zone (default us-west4-a)
#   TYPE     accelerator type (v5litepod-32)      RUNTIME  image of the machines (default: by TYPE)
#   RETRIES  slices that may be lost (default 20) KEEP=1   do not delete the slice at the end
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/environment.sh
source launch/environment.sh
read_arguments "$@"
name="${NAME:-prance}" zone="${ZONE:-us-west4-a}" type="${TYPE:-v5litepod-32}" retries="${RETRIES:-20}"
if [[ -z "${BUCKET:-}" && $dry == 0 ]]; then
    echo "BUCKET is empty: give the bucket that keeps the workdir, it must outlive the slice" >&2
    exit 2
fi
bucket="${BUCKET:-BUCKET}" data="${DATA:-/mnt/run/data}"
case "$type" in
v5litepod-*) runtime="${RUNTIME:-v2-alpha-tpuv5-lite}" ;;
v5p-*) runtime="${RUNTIME:-v2-alpha-tpuv5}" ;;
v6e-*) runtime="${RUNTIME:-v2-alpha-tpuv6e}" ;;
*) runtime="${RUNTIME:-tpu-ubuntu2204-base}" ;;
esac
workdir="/mnt/run/$(basename "$config" .py)"

on_workers() {
    run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "$1"
}

state() {
    gcloud compute tpus tpu-vm describe "$name" --zone "$zone" --format 'value(state)' 2>/dev/null || true
}

create() {
    if [[ $dry == 0 ]]; then
        case "$(state)" in
        READY) return 0 ;;
        "") ;;
        *) run gcloud compute tpus tpu-vm delete "$name" --zone "$zone" --quiet ;;
        esac
    fi
    run gcloud compute tpus tpu-vm create "$name" --zone "$zone" --accelerator-type "$type" --version "$runtime"
}

install() {
    local packed
    packed="$(mktemp --suffix .tar.gz)"
    run git archive --output "$packed" HEAD
    run gcloud compute tpus tpu-vm scp "$packed" "$name:/tmp/prance.tar.gz" --zone "$zone" --worker all
    run rm -f "$packed"
    on_workers "mkdir -p ~/prance && tar -xzf /tmp/prance.tar.gz -C ~/prance && cd ~/prance \
&& python3 -m venv ~/venv && ~/venv/bin/pip install --quiet -e '.[tpu]'"
    on_workers "sudo mkdir -p /mnt/run && sudo chown \$(id -u) /mnt/run \
&& (mountpoint -q /mnt/run || gcsfuse --implicit-dirs $bucket /mnt/run)"
}

words=(train --distributed auto --config "$config" --workdir "$workdir" "--config.data.folder.path=$data" "${overrides[@]}")
command="cd ~/prance && ~/venv/bin/python -m prance_jax $(printf '%q ' "${words[@]}")"

for ((attempt = 0; attempt <= retries; attempt++)); do
    # Any of the three may fail because a worker is lost; the state of the slice afterwards shows it.
    if create && install && on_workers "$command"; then
        run gcloud compute tpus tpu-vm scp --recurse "$name:$workdir" runs/ --zone "$zone" --worker 0
        [[ "${KEEP:-0}" == 1 ]] || run gcloud compute tpus tpu-vm delete "$name" --zone "$zone" --quiet
        echo "done; the run is in gs://$bucket/$(basename "$workdir") and in runs/$(basename "$workdir")"
        exit 0
    fi
    if [[ "$(state)" == READY ]]; then
        echo "The command failed, and the slice is in order: see the messages above. The slice is kept; the same command continues." >&2
        exit 1
    fi
    echo "The slice was lost (preempted?); creating it again, attempt $((attempt + 1)) of $retries" >&2
done
echo "The slice was lost $((retries + 1)) times; the same command continues from the last checkpoint" >&2
exit 1
