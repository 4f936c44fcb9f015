#!/usr/bin/env bash
# A psp_jax run on a machine with GPUs, or on several.
#
#   launch/gpu_box.sh install [flags]
#   launch/gpu_box.sh run     [flags] -- FLAGS...
#   launch/gpu_box.sh status | logs | stop [flags]
#
# FLAGS are those of `python -m psp_jax.main`. The run goes on when the terminal
# is gone, and after exit code 75; `stop` has it save first. `run` again goes on
# with what was stopped. Without --hosts it is this machine. With --hosts each
# is reached by ssh and runs one process with all of its GPUs, and they find
# each other by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID:
# the first host has to be reachable from the others by the name given here,
# and --workdir has to be one folder that all of them see.
#
#   --hosts=a,b         [HOSTS]
#   --folder=psp_jax    where psp_jax is on the hosts; by default psp_jax below
#                       the home, or this checkout without --hosts [FOLDER]
#   --coordinator_port=8476
#   --setup=COMMAND     run on every machine before the run, such as one that
#                       mounts a disk [SETUP]
#   --host=a            logs: of which host; by default the first
#   --dry_run           print the commands, on stdout; run none
#
# Names in brackets are environment variables. No GPU has run this yet.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/launch/common.sh"

verb=${1:-}
case $verb in
  --help) help "$0"; exit 0 ;;
  install | run | status | logs | stop) shift ;;
  '') help "$0" >&2; exit 2 ;;
  *) fail "'$verb': not a command; --help lists them" ;;
esac

hosts=${HOSTS:-} folder=${FOLDER:-} setup=${SETUP:-} host='' port=8476
while [ $# -gt 0 ]; do
  case $1 in
    --hosts=*) hosts=${1#*=} ;;
    --folder=*) folder=${1#*=} ;;
    --coordinator_port=*) port=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --host=*) host=${1#*=} ;;
    --dry_run) dry_run=1 ;;
    --help) help "$0"; exit 0 ;;
    --) shift; break ;;
    *) unknown "$1" ;;
  esac
  shift
done
flags=("$@")
case $port in
  '' | *[!0-9]*) fail "--coordinator_port=$port: not a number" ;;
esac
IFS=, read -r -a each <<< "$hosts"
for one in ${each[@]+"${each[@]}"}; do
  case $one in
    '' | -*) fail "--hosts=$hosts: '$one' is not a host" ;;
  esac
done
if [ "${#each[@]}" = 0 ]; then
  folder=${folder:-$here}
else
  folder=${folder:-psp_jax}
fi

# A command of this folder, here or on a host.
on() {
  local where=$1
  shift
  if [ -z "$where" ]; then
    run "$@"
  else
    run ssh "$where" "$(quoted "$@")"
  fi
}

supervise() {  # On every machine.
  local one
  for one in "${each[@]:-}"; do
    on "$one" "$folder/launch/supervise.sh" "$@"
  done
}

case $verb in
  install)
    for one in "${each[@]:-}"; do
      if [ -n "$one" ]; then
        file=${XDG_CACHE_HOME:-$HOME/.cache}/psp_jax/gpu_box.tar.gz
        run mkdir -p "${file%/*}"
        pack "$here" "$file"
        run scp "$file" "$one:psp_jax.tar.gz"
        on "$one" mkdir -p "$folder"
        on "$one" tar -C "$folder" -xzf psp_jax.tar.gz
      fi
      on "$one" "$folder/launch/install.sh" cuda
    done
    ;;
  run)
    check_flags "${flags[@]}"
    start=("$folder/launch/supervise.sh" start)
    [ -z "$setup" ] || start+=(--setup="$setup")
    start+=(-- .venv/bin/python -m psp_jax.main "${flags[@]}")
    if [ "${#each[@]}" -lt 2 ]; then
      on "${each[0]:-}" "${start[@]}"
    else
      [ -n "$(workdir_of "${flags[@]}")" ] \
        || fail '--workdir: not given; it has to be one that all hosts see'
      for i in "${!each[@]}"; do
        on "${each[$i]}" env \
          "JAX_COORDINATOR_ADDRESS=${each[0]##*@}:$port" \
          "JAX_NUM_PROCESSES=${#each[@]}" "JAX_PROCESS_ID=$i" "${start[@]}"
      done
    fi
    ;;
  logs) on "${host:-${each[0]:-}}" "$folder/launch/supervise.sh" logs ;;
  status | stop) supervise "$verb" ;;
esac
