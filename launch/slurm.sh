#!/usr/bin/env bash
# A psp_jax run as a Slurm job, which goes on when its time is over.
#
#   launch/slurm.sh submit --time=24:00:00 [flags] -- FLAGS...
#
# FLAGS are those of `python -m psp_jax.main`; paths in them, such as --workdir,
# are relative to this checkout and have to be seen by all nodes. Install
# before, with launch/install.sh cuda. Two minutes before the job's time is
# over, or when it is preempted, Slurm sends SIGTERM: the run saves and ends with
# 75, on which the job queues itself again. Any other code ends it.
#
#   --time=24:00:00     of one stretch
#   --nodes=1
#   --gpus_per_node=1   one process for each, as JAX wants it under Slurm
#   --partition=NAME
#   --account=NAME
#   --name=psp_jax      of the job; its log is slurm_NAME_JOB.txt
#   --signal_seconds=120
#   --sbatch=FLAG       passed on to sbatch; may be given again
#   --dry_run           print the command, on stdout; run none
#
# No cluster has run this yet.
set -euo pipefail
# Slurm runs a copy of this file, which `submit` tells where it comes from.
here=${PSP_JAX_FOLDER:-$(cd "$(dirname "$0")/.." && pwd)}
. "$here/launch/common.sh"
readonly AGAIN=75

verb=${1:-}
case $verb in
  --help) help "$0"; exit 0 ;;
  submit | job) shift ;;
  '') help "$0" >&2; exit 2 ;;
  *) fail "'$verb': not a command; --help lists them" ;;
esac

time='' nodes=1 gpus=1 partition='' account='' name=psp_jax seconds=120
more=()
while [ $# -gt 0 ]; do
  case $1 in
    --time=*) time=${1#*=} ;;
    --nodes=*) nodes=${1#*=} ;;
    --gpus_per_node=*) gpus=${1#*=} ;;
    --partition=*) partition=${1#*=} ;;
    --account=*) account=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --signal_seconds=*) seconds=${1#*=} ;;
    --sbatch=*) more+=("${1#*=}") ;;
    --dry_run) dry_run=1 ;;
    --help) help "$0"; exit 0 ;;
    --) shift; break ;;
    *) unknown "$1" ;;
  esac
  shift
done

check_flags "$@"

case $verb in
  submit)
    need --time "$time" 24:00:00
    for pair in "--nodes=$nodes" "--gpus_per_node=$gpus" \
      "--signal_seconds=$seconds"; do
      case ${pair#*=} in
        '' | 0 | *[!0-9]*) fail "$pair: not a number from 1" ;;
      esac
    done
    # Without "B:" the signal is for the processes of srun, not for this shell.
    command=(sbatch --job-name="$name" --time="$time" --nodes="$nodes"
      --ntasks-per-node="$gpus" --gpus-per-node="$gpus" --requeue
      --signal="TERM@$seconds" --open-mode=append
      --output="$here/slurm_${name}_%j.txt" --chdir="$here"
      --export="ALL,PSP_JAX_FOLDER=$here")
    [ -z "$partition" ] || command+=(--partition="$partition")
    [ -z "$account" ] || command+=(--account="$account")
    run "${command[@]}" ${more[@]+"${more[@]}"} "$here/launch/slurm.sh" job \
      -- "$@"
    ;;
  job)
    need SLURM_JOB_ID "${SLURM_JOB_ID:-}" '123, as Slurm sets it'
    cd "$here"
    # All tasks see all GPUs of their node, and JAX gives each its own. One
    # that ends with 75 must not have the others killed, who save the same step.
    code=0
    run srun --kill-on-bad-exit=0 --gpu-bind=none \
      .venv/bin/python -m psp_jax.main "$@" || code=$?
    if [ "$code" = "$AGAIN" ]; then
      run scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
    ;;
esac
