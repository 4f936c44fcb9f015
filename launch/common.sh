# shellcheck shell=bash
# What the launch scripts share; sourced, never run.

dry_run=${dry_run:-0} yes=${yes:-0}

fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

say() {
  printf '%s\n' "$*" >&2
}

if ! (shopt -s inherit_errexit) 2> /dev/null; then
  fail "bash ${BASH_VERSION:-} is too old: these scripts need 4.4 or later"
fi

# The comment that a script begins with.
help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1"
}

# One line that a shell reads back as the same words.
quoted() {
  local word line='' inner="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/$inner}'" ;;
    esac
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

# Runs a command and says so; with --dry_run it only says it, on stdout.
run() {
  if [ "$dry_run" = 1 ]; then
    quoted "$@"
  else
    say "+ $(quoted "$@")"
    "$@"
  fi
}

# Runs a question that changes nothing, with --dry_run as well: what comes next
# depends on the answer.
ask() {
  if [ "$dry_run" = 1 ]; then
    quoted "$@" >&3
  fi
  "$@"
}
exec 3>&1  # Where `ask` says it, though its output is being read.

# The value of a flag that must be given: its name, its value, an example.
need() {
  [ -n "$2" ] || fail "$1: not given; for instance $1=$3, or --help"
}

# Yes or no, by the flag or by a person.
confirm() {
  if [ "$yes" = 1 ] || [ "$dry_run" = 1 ]; then
    return 0
  fi
  local answer
  printf '%s [y/N] ' "$1" >&2
  read -r answer || fail "--yes: not given, and nobody answers"
  case $answer in
    y | Y | yes) ;;
    *) fail 'not confirmed: nothing was done' 1 ;;
  esac
}

# A run's folder, and its data, are on a disk.
no_buckets() {
  local word
  for word in "$@"; do
    case $word in
      --workdir=*://* | --config.data.manual_dir=*://* \
        | --config.data.data_dir=*://*)
        fail "${word%%=*}: ${word#*=} is not a folder; mount the bucket \
(--setup) or keep a copy of the run there (--sync), docs/cloud_tpu.md" ;;
    esac
  done
}

unknown() {
  fail "$1: no such flag, or no value; --help lists them, as --name=VALUE"
}

# Those of psp_jax.main, which come after --.
check_flags() {
  [ $# -gt 0 ] || fail "no flags for psp_jax.main; they come after --, such as \
-- --config=configs/ade20k.py --workdir=runs/ade20k"
  no_buckets "$@"
}

# --workdir=DIR among a command's words, or nothing.
workdir_of() {
  local word found=''
  for word in "$@"; do
    case $word in
      --workdir=*) found=${word#--workdir=} ;;
    esac
  done
  printf '%s' "$found"
}

# All that a machine needs to install psp_jax, in one file.
pack() {
  run tar -C "$1" --exclude=__pycache__ -czf "$2" \
    setup.py pyproject.toml README.md LICENSE psp_jax configs launch
}
