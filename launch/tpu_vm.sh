#!/usr/bin/env bash
# A psp_jax job on one Cloud TPU VM (a single host: v5litepod-8, v4-8).
#
#   launch/tpu_vm.sh create | install | train | logs | delete
#
# Settings come from the environment: TPU_NAME, ZONE, TYPE, RUNTIME, CONFIG,
# WORKDIR, ARGS, SPOT=1. With DRY_RUN=1 the commands are printed, not run. A TPU
# VM costs money until it is deleted. This script has not been run on a TPU.
set -euo pipefail

TPU_NAME=${TPU_NAME:-psp-jax}
ZONE=${ZONE:-us-central1-a}
TYPE=${TYPE:-v5litepod-8}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
CONFIG=${CONFIG:-configs/ade20k.py}
WORKDIR=${WORKDIR:-runs/tpu}
ARGS=${ARGS:-}
SPOT=${SPOT:-0}
DRY_RUN=${DRY_RUN:-0}
here=$(cd "$(dirname "$0")/.." && pwd)

run() {
  if [ "$DRY_RUN" = 1 ]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

on_vm() {
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone "$ZONE" --command "$1"
}

case "${1:-}" in
  create)
    spot=()
    [ "$SPOT" = 1 ] && spot=(--spot)
    run gcloud compute tpus tpu-vm create "$TPU_NAME" --zone "$ZONE" \
      --accelerator-type "$TYPE" --version "$RUNTIME" "${spot[@]}"
    ;;
  install)
    run gcloud compute tpus tpu-vm scp --recurse "$here" "$TPU_NAME:psp_jax" \
      --zone "$ZONE"
    # The image's own Python may be older than 3.11.
    on_vm "pip install --quiet uv && export PATH=\$PATH:~/.local/bin && \
cd psp_jax && uv venv --python 3.12 .venv && \
uv pip install --python .venv/bin/python -e '.[tpu]'"
    ;;
  train)
    # Started again after an interruption, it resumes in WORKDIR.
    on_vm "cd psp_jax && mkdir -p '$WORKDIR' && \
nohup .venv/bin/python -m psp_jax.main --config='$CONFIG' \
--workdir='$WORKDIR' $ARGS >> '$WORKDIR/log.txt' 2>&1 < /dev/null &"
    ;;
  logs)
    on_vm "tail -n 50 -f 'psp_jax/$WORKDIR/log.txt'"
    ;;
  delete)
    run gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone "$ZONE" --quiet
    ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
