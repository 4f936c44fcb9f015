#!/usr/bin/env bash
# A psp_jax run on a Cloud TPU, asked for as a queued resource.
#
#   launch/tpu_vm.sh create  --name=N --zone=Z --type=T [--spot]
#   launch/tpu_vm.sh install --name=N --zone=Z
#   launch/tpu_vm.sh run     --name=N --zone=Z [--sync=gs://...] -- FLAGS...
#   launch/tpu_vm.sh status | logs | tensorboard | stop
#   launch/tpu_vm.sh resume  (flags of create and run) [--watch] -- FLAGS...
#   launch/tpu_vm.sh fetch   --from=runs/NAME [--to=DIR]
#   launch/tpu_vm.sh delete
#
# FLAGS are those of `python -m psp_jax.main`; paths in them are relative to
# ~/psp_jax on the TPU's machines. A TPU COSTS MONEY FROM CREATE TO DELETE,
# whether anything runs on it or not. `resume` looks what has become of a run:
# ended with 75 (told to stop, and saved) it goes on; a TPU that was preempted
# is deleted, asked for again and installed, and the run goes on from --sync's
# or --setup's storage, for what was on its own disk is gone.
#
#   --name=NAME         of the queued resource and the TPU [TPU_NAME, psp-jax]
#   --zone=ZONE         [ZONE]
#   --type=TYPE         v5litepod-8, v4-32, v6e-8, ... [TYPE]
#   --runtime=VERSION   [RUNTIME]; by default the one for --type
#   --project=PROJECT   [PROJECT]; by default gcloud's own
#   --spot              cheaper, and may be taken away at any time [SPOT=1]
#   --sync=gs://...     where a run of one machine keeps a copy of its workdir,
#                       brought up to date every five minutes [SYNC]
#   --setup=COMMAND     run on every machine before the run, such as one that
#                       mounts a disk which all of them see [SETUP]
#   --watch             resume: go on looking, until the run is done
#   --worker=0          logs, fetch: of which machine
#   --port=6006         tensorboard
#   --poll=30           seconds between two looks
#   --yes               ask nothing
#   --dry_run           print the commands, on stdout; run none. (resume still
#                       asks for the states, which changes nothing, and tells
#                       what would follow.)
#
# Names in brackets are environment variables. No TPU has run this yet.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/launch/common.sh"

verb=${1:-}
case $verb in
  --help) help "$0"; exit 0 ;;
  create | install | run | status | logs | tensorboard | stop | resume | fetch \
    | delete) shift ;;
  '') help "$0" >&2; exit 2 ;;
  *) fail "'$verb': not a command; --help lists them" ;;
esac

name=${TPU_NAME:-psp-jax} zone=${ZONE:-} type=${TYPE:-} runtime=${RUNTIME:-}
project=${PROJECT:-} spot=${SPOT:-0} sync=${SYNC:-} setup=${SETUP:-}
watch=0 worker=0 port=6006 poll=30 from='' to=.
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --sync=*) sync=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --from=*) from=${1#*=} ;;
    --to=*) to=${1#*=} ;;
    --spot) spot=1 ;;
    --watch) watch=1 ;;
    --yes) yes=1 ;;
    --dry_run) dry_run=1 ;;
    --help) help "$0"; exit 0 ;;
    --) shift; break ;;
    *) unknown "$1" ;;
  esac
  shift
done
flags=("$@")

need --name "$name" psp-jax
need --zone "$zone" us-west4-a
[ "$dry_run" = 1 ] || command -v gcloud > /dev/null \
  || fail 'gcloud: not found; install the Google Cloud CLI, or use Cloud Shell'

# ---- What is asked of gcloud.

where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")
queue=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)

on_workers() {  # Which, and a command.
  run "${vm[@]}" ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

# Of cloud.google.com/tpu/docs/runtimes: for JAX, one for each generation. The
# reference of `queued-resources create` has v2-alpha-tpuv4 in its example; for
# v4 and before, the page of runtimes says tpu-ubuntu2204-base.
runtime_of() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
  esac
}

check_type() {
  need --type "$type" v5litepod-8
  case ${type##*-} in
    '' | "$type" | *[!0-9]*)
      fail "--type=$type: not a TPU's; such as v5litepod-8, v4-32" ;;
  esac
  runtime=${runtime:-$(runtime_of "$type")}
  need --runtime "$runtime" v2-alpha-tpuv5-lite
}

check_run() {
  check_flags "${flags[@]}"
  [ -z "$sync" ] || case $sync in
    gs://?*) ;;
    *) fail "--sync=$sync: not gs://BUCKET/FOLDER" ;;
  esac
  [ -z "$sync" ] || check_type
  [ -z "$sync" ] || [ -n "$(workdir_of "${flags[@]}")" ] \
    || fail '--workdir: not given among the flags after --; --sync copies it'
  # Eight chips (v5e, v6e) or eight cores (v4, v5p) are one machine.
  if [ -n "$sync" ] && [ "${type##*-}" -gt 8 ]; then
    fail "--sync: $type is several machines, which have to see one folder; \
mount a disk with --setup, docs/cloud_tpu.md"
  fi
}

scratch=$(mktemp)
created=0
ended() {
  local code=$?
  rm -f "$scratch"
  if [ "$code" != 0 ] && [ "$created" = 1 ]; then
    say "$name has been asked for, and costs money once it is there: status,"
    say 'resume or delete'
  fi
}
trap ended EXIT

state() {  # "" where there is none.
  if ask "${queue[@]}" describe "$name" "${where[@]}" \
      '--format=value(state.state)' 2> "$scratch"; then
    return
  fi
  case $(< "$scratch") in
    *NOT_FOUND* | *'was not found'*) ;;
    *) fail "$name: its state cannot be had: $(< "$scratch")" 1 ;;
  esac
}

# ---- The steps.

warn() {
  local tier='on demand'
  [ "$spot" = 0 ] || tier=spot
  say "--type=$type in $zone, $tier."
  say 'It costs money from now until it is deleted, used or not, by the prices'
  say 'of cloud.google.com/tpu/pricing. To delete it:'
  say "  launch/tpu_vm.sh delete --name=$name ${where[*]}"
  confirm 'Create it?'
}

create() {
  local options=(--node-id="$name" --accelerator-type="$type"
    --runtime-version="$runtime")
  [ "$spot" = 0 ] || options+=(--spot)
  created=$((1 - dry_run))
  run "${queue[@]}" create "$name" "${where[@]}" "${options[@]}"
}

wait_until_active() {
  local now='' before=''
  if [ "$dry_run" = 1 ]; then
    quoted "${queue[@]}" describe "$name" "${where[@]}" \
      '--format=value(state.state)'
    return
  fi
  while now=$(state) && [ "$now" != ACTIVE ]; do
    case $now in
      '' | FAILED | SUSPENDING | SUSPENDED | DELETING)
        fail "$name is ${now:-gone}: gcloud compute tpus queued-resources \
describe $name --zone=$zone says why; resume asks for it again" 1 ;;
    esac
    [ "$now" = "$before" ] || say "$name is $now; Ctrl-C leaves it in the queue"
    before=$now
    sleep "$poll"
  done
  say "$name is ACTIVE"
}

install() {
  local file=${XDG_CACHE_HOME:-$HOME/.cache}/psp_jax/$name.tar.gz
  run mkdir -p "${file%/*}"
  pack "$here" "$file"
  run "${vm[@]}" scp "$file" "$name:psp_jax.tar.gz" "${where[@]}" --worker=all
  on_workers all "mkdir -p psp_jax && tar -C psp_jax -xzf psp_jax.tar.gz && \
psp_jax/launch/install.sh tpu"
}

start() {
  local options=()
  [ -z "$setup" ] || options+=(--setup="$setup")
  [ -z "$sync" ] || options+=(--sync="$sync")
  on_workers all "$(quoted psp_jax/launch/supervise.sh start "${options[@]}" \
    -- .venv/bin/python -m psp_jax.main "${flags[@]}")"
}

delete() {
  run "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
}

# What the machines say of the run: "running", "ended 75", one a line.
runs() {
  ask "${vm[@]}" ssh "$name" "${where[@]}" --worker=all \
    --command='psp_jax/launch/supervise.sh status' \
    | sed -n 's/^.*psp_jax run on [^:]*: //p'
}

anew() {
  say "$1: asking for it again"
  [ "$confirmed" = 1 ] || warn
  confirmed=1
  [ "$2" = keep ] || delete
  create
  wait_until_active
  install
  start
}

# Sets `finished`: whether another look would be of no use. Never called where
# a condition is asked for, for there bash goes on after what fails.
resume() {
  local now said code
  now=$(state)
  case $now in
    '') anew "$name is gone" keep; return ;;
    FAILED | SUSPENDED) anew "$name is $now" delete; return ;;
    SUSPENDING | DELETING)
      say "$name is $now: it can be asked for again when that is over"
      return ;;
    ACTIVE) ;;
    *) wait_until_active; install; start; return ;;
  esac
  if ! said=$(runs) || [ -z "$said" ]; then
    say "$name is ACTIVE, but its machines do not tell of a run; is it \
installed? If it is being preempted, look again in a minute"
    return
  fi
  case $said in
    *running*) say 'the run is going on'; return ;;
  esac
  case $(sort -u <<< "$said") in
    'ended 0')
      say 'the run is done; fetch its results, and delete the TPU'
      finished=1
      return ;;
  esac
  # What a person has to mend, or to look at, is not started again and again.
  code=$(grep -E '^ended' <<< "$said" | grep -vxE 'ended (0|75)' | head -n 1) \
    || code=''
  [ -z "$code" ] || fail "the run ${code}: logs says why \
(docs/reliability.md has the codes); when that is mended: run" 1
  start
}

case $verb in
  create)
    check_type
    warn
    create
    wait_until_active
    ;;
  install) install ;;
  run)
    check_run
    start
    ;;
  status)
    run "${queue[@]}" describe "$name" "${where[@]}" \
      '--format=value(state.state)'
    on_workers all 'psp_jax/launch/supervise.sh status'
    ;;
  logs) on_workers "$worker" 'psp_jax/launch/supervise.sh logs' ;;
  stop) on_workers all 'psp_jax/launch/supervise.sh stop' ;;
  tensorboard)
    say "open http://localhost:$port; Ctrl-C ends it"
    run "${vm[@]}" ssh "$name" "${where[@]}" --worker=0 \
      --command="cd psp_jax && $(quoted .venv/bin/tensorboard \
        --logdir="${from:-runs}" --port="$port")" \
      -- -L "$port:localhost:$port"
    ;;
  resume)
    check_type
    check_run
    finished=0 confirmed=0
    if [ "$watch" = 1 ]; then  # Nobody may be there when it is asked for.
      warn
      confirmed=1
    fi
    resume
    while [ "$watch$dry_run$finished" = 100 ]; do
      sleep "$poll"
      resume
    done
    ;;
  fetch)
    need --from "$from" runs/ade20k
    case $from in
      /*) ;;
      *) from=psp_jax/$from ;;
    esac
    run "${vm[@]}" scp --recurse "$name:$from" "$to" "${where[@]}" \
      --worker="$worker"
    ;;
  delete)
    say "$name in $zone and all that is on its disks will be gone; what is"
    say 'wanted of them has to be fetched before.'
    confirm 'Delete it?'
    delete
    ;;
esac
