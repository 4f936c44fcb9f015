#!/usr/bin/env bash
# Installs psp_jax, in the folder above this one, into its .venv.
#
#   launch/install.sh tpu|cuda
#
# The images' own Python may be older than 3.11, so uv brings one. Called again
# it updates what is there.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/launch/common.sh"

case "${1:-}" in
  --help) help "$0"; exit 0 ;;
  tpu | cuda) ;;
  *) fail "'${1:-}': install.sh takes tpu or cuda" ;;
esac

cd "$here"
export PATH="$HOME/.local/bin:$PATH"
if ! command -v uv > /dev/null; then
  # Newer systems do not let pip install for a user; uv has its own installer.
  python3 -m pip install --quiet --user uv \
    || curl -LsSf https://astral.sh/uv/install.sh | sh
fi
[ -x .venv/bin/python ] || uv venv --python 3.12 .venv
uv pip install --quiet --python .venv/bin/python -e ".[$1]"
.venv/bin/python -c 'import psp_jax, jax; print("jax", jax.__version__)'
