#!/usr/bin/env bash
# Creates .venv from requirements.lock, or completes it. `make` calls this from the repository root.
# uv installs the packages. Where uv is not available, pip installs the same files (same hashes).
set -euo pipefail
trap 'exit 130' INT
trap 'exit 143' TERM

python=${1:-python3}
venv=.venv
unfinished=$venv/.unfinished # holds the process id of the set-up until it has finished
newer='import sys; sys.exit(sys.version_info < (3, 11))'
PATH=${PATH//"$PWD/$venv/bin:"/} # the environment must not create itself
export PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
  echo "set-up failed: $*" >&2
  exit 2
}

# An error leaves complete packages, an interruption may not: the next set-up keeps them.
stop() {
  rm "$unfinished"
  fail "the error is above; run the same command to try again"
}

pip() { "$venv/bin/python" -m pip "$@"; }

create() {
  local version another="name another: make PYTHON=/path/to/python3.11"
  version=$("$python" -V 2>/dev/null) || fail "'$python' does not run; $another"
  "$python" -c "$newer" || fail "semires needs Python 3.11 or newer, '$python' is $version; $another"
  mkdir -p "$venv" && echo $$ >"$unfinished"
  find "$venv/" -mindepth 1 -maxdepth 1 ! -name .unfinished -exec rm -rf {} +
  "$python" -m venv "$venv" || fail "'$python -m venv' does not work (Debian: apt install python3-venv)"
}

with_uv() {
  local index=${PIP_INDEX_URL:-$(pip config get global.index-url 2>/dev/null || true)}
  [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}" # the mirror that pip uses
  pip install --quiet --require-hashes -r tools/uv.lock &&
    "$venv/bin/uv" pip install --compile-bytecode --python "$venv/bin/python" --require-hashes -r requirements.lock
}

with_pip() {
  echo "    uv is not available or failed; pip installs the same files in a few minutes"
  pip install --require-hashes -r requirements.lock
}

if [ -e "$unfinished" ]; then
  ! kill -0 "$(cat "$unfinished")" 2>/dev/null || fail "another set-up is running (or remove $unfinished)"
  echo "    the last set-up was interrupted; $venv is created again"
  create
elif ! "$venv/bin/python" -c '' 2>/dev/null; then
  [ ! -e "$venv/bin" ] || echo "    the Python in $venv does not run; $venv is created again"
  create
fi
"$venv/bin/python" -c "$newer" || fail "$venv holds $("$venv/bin/python" -V); remove it: rm -r $venv"
pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null || fail "$venv has no pip"
echo $$ >"$unfinished"
echo "1/3 environment: $venv, $("$venv/bin/python" -V)"

echo "2/3 packages: $(grep -c '==' requirements.lock) in requirements.lock"
with_uv || with_pip || stop

echo "3/3 semires"
pip install --quiet --no-deps --no-build-isolation --editable . || stop

rm "$unfinished"
touch "$venv/.ready"
echo "ready after $SECONDS s"
