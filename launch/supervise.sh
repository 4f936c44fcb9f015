#!/usr/bin/env bash
# Keeps a command running on this machine after the terminal is gone.
#
#   launch/supervise.sh start [flags] -- COMMAND...
#   launch/supervise.sh status | logs | stop [--state=DIR]
#
# Exit code 75 of the command means "the same command goes on": it is started
# again, unless this script was told to stop. Any other code ends it, and
# `status` tells it: "running", "ended CODE", "cut off" (the machine went down
# without a word) or "nothing". `stop` sends SIGTERM, on which psp_jax saves.
#
#   --state=DIR         log.txt and what status reads; by default
#                       ~/.local/state/psp_jax/HOST
#   --setup=COMMAND     a shell command to run before, such as one that mounts
#                       a disk; when it fails, so does the start
#   --sync=gs://...     a copy of the run's folder: fetched first if there is no
#                       such folder yet, brought up to date while it runs and
#                       once it ends. For a run of one machine
#   --workdir=DIR       the run's folder, for --sync; by default the command's
#                       own --workdir
#   --sync_seconds=300  how often
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/launch/common.sh"
readonly AGAIN=75

verb=${1:-}
case $verb in
  --help) help "$0"; exit 0 ;;
  start | status | logs | stop | _run) shift ;;
  '') help "$0" >&2; exit 2 ;;
  *) fail "'$verb': not one of start, status, logs, stop" ;;
esac
original=("$@")

state=${XDG_STATE_HOME:-$HOME/.local/state}/psp_jax/$(uname -n)
setup='' sync='' workdir='' sync_seconds=300 again_seconds=5
while [ $# -gt 0 ]; do
  case $1 in
    --state=*) state=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --sync=*) sync=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --sync_seconds=*) sync_seconds=${1#*=} ;;
    --again_seconds=*) again_seconds=${1#*=} ;;
    --help) help "$0"; exit 0 ;;
    --) shift; break ;;
    *) unknown "$1" ;;
  esac
  shift
done

running() {
  # The lock is the system's and goes with the processes, however they end.
  [ -e "$state/lock" ] && ! flock -n "$state/lock" true
}

copy() {
  # Saves under way, and the lock, are of this machine alone.
  gcloud storage rsync --recursive --delete-unmatched-destination-objects \
    --exclude='.*orbax-checkpoint-tmp.*|^lock$|.*\.part$' "$workdir" "$sync"
}

fetch() {
  [ ! -e "$workdir" ] || return 0  # What is here is at least as new.
  local listed
  if ! listed=$(gcloud storage ls "$sync" 2>&1); then
    # Only this may start anew: a bucket that cannot be read must not.
    case $listed in
      *'matched no objects'*) return 0 ;;
      *) fail "--sync=$sync: cannot be read: $listed" ;;
    esac
  fi
  rm -rf "$workdir.fetching"
  mkdir -p "$workdir.fetching"
  gcloud storage rsync --recursive "$sync" "$workdir.fetching" \
    || fail "--sync=$sync: could not be fetched"
  mv "$workdir.fetching" "$workdir"
}

start() {
  [ $# -gt 0 ] || fail 'no command: it comes after --'
  no_buckets "$@"
  if [ -n "$sync" ]; then
    case $sync in
      gs://?*) ;;
      *) fail "--sync=$sync: not gs://BUCKET/FOLDER" ;;
    esac
    [ -n "${workdir:-$(workdir_of "$@")}" ] \
      || fail '--workdir: not given; --sync copies that folder'
  fi
  case $sync_seconds in
    '' | *[!0-9]*) fail "--sync_seconds=$sync_seconds: not a number" ;;
  esac
  mkdir -p "$state"
  exec 9>> "$state/lock"
  flock -w 1 9 || fail "a run is going on here already: \
$here/launch/supervise.sh stop ends it, status and logs tell of it"
  rm -f "$state/exit_code" "$state/pid"
  # It keeps the lock by the open file.
  setsid nohup "$here/launch/supervise.sh" _run "${original[@]}" \
    >> "$state/log.txt" 2>&1 < /dev/null 3>&- &
  echo $! > "$state/pid"
  echo "started; its log is $state/log.txt"
}

supervise() {
  local child='' stopping=0 code=$AGAIN pusher=''
  cd "$here"  # To which --workdir and the command's own paths are relative.
  workdir=${workdir:-$(workdir_of "$@")}
  trap 'stopping=1; [ -z "$child" ] || kill -TERM "$child" 2> /dev/null || :' \
    TERM INT
  # shellcheck disable=SC2329  # The trap calls it.
  ended() {
    code=$?
    echo "$code" > "$state/exit_code.part"
    mv "$state/exit_code.part" "$state/exit_code"
    echo "== $(date -u '+%F %T') UTC: ended with $code"
  }
  trap ended EXIT
  if [ -n "$setup" ]; then
    bash -c "$setup" || fail '--setup: the command failed'
  fi
  if [ -n "$sync" ]; then
    fetch
    # That it can be written is worth knowing before hours of work.
    mkdir -p "$workdir"
    copy || fail "--sync=$sync: cannot be written"
    (
      trap - EXIT TERM INT
      while sleep "$sync_seconds"; do
        copy || echo "warning: --sync=$sync failed; the next one may not"
      done
    ) 9>&- &
    pusher=$!
  fi
  while [ "$stopping" = 0 ]; do
    echo "== $(date -u '+%F %T') UTC: $(quoted "$@")"
    "$@" &
    child=$!
    code=0
    wait "$child" || code=$?
    # A signal ends `wait` too: then the child has yet to be waited for.
    while [ "$code" -gt 128 ]; do
      local last=0
      wait "$child" || last=$?
      [ "$last" != 127 ] || break  # It has been waited for.
      [ "$last" != "$code" ] || kill -0 "$child" 2> /dev/null || break
      code=$last
    done
    child=''
    [ "$code" = "$AGAIN" ] && [ "$stopping" = 0 ] || break
    sleep "$again_seconds" & wait $! || :
  done
  if [ -n "$sync" ]; then
    kill "$pusher" 2> /dev/null || :
    copy || copy || echo "warning: --sync=$sync: the last copy failed"
  fi
  exit "$code"
}

case $verb in
  start) start "$@" ;;
  _run) supervise "$@" ;;
  status)
    if running; then
      found=running
    elif [ -e "$state/exit_code" ]; then
      found="ended $(cat "$state/exit_code")"
    elif [ -e "$state/lock" ]; then
      found='cut off'
    else
      found=nothing
    fi
    echo "psp_jax run on $(uname -n): $found"
    ;;
  logs)
    [ -e "$state/log.txt" ] || fail "no log here: $state/log.txt"
    exec tail -n 50 -F "$state/log.txt"
    ;;
  stop)
    if running && [ -e "$state/pid" ]; then
      kill -TERM "$(cat "$state/pid")"
      echo "told to stop; it saves first"
    else
      echo "nothing runs here"
    fi
    ;;
esac
