# Sourced by run_all.sh and run_tests.sh: makes .venv from requirements.lock, once.
# After it, $PYTHON is the environment's Python and $ROOT the checkout.

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
PYTHON="$ROOT/.venv/bin/python"

say() { printf '%s\n' "$*" >&2; }

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3 python; do
    if command -v "$name" >/dev/null 2>&1 && is_new_enough "$name"; then
      command -v "$name"
      return
    fi
  done
  say "No Python 3.11 or newer was found. Install one (for example: apt-get install python3 python3-venv, or"
  say "brew install python@3.12) and run this again."
  return 1
}

hash_of_lock() {
  "$1" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' \
    "$ROOT/requirements.lock"
}

install_packages() {
  # Own words instead of the installer's: its output goes to a file, and addresses are left out of what is shown.
  local log="$ROOT/.venv/install.log"
  if command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1; then
    uv pip install --quiet --python "$PYTHON" --require-hashes -r "$ROOT/requirements.lock" >"$log" 2>&1
  else
    { "$PYTHON" -m pip --version || "$PYTHON" -m ensurepip; } >"$log" 2>&1 &&
      "$PYTHON" -m pip install --quiet --disable-pip-version-check --require-hashes \
        -r "$ROOT/requirements.lock" >>"$log" 2>&1
  fi || {
    say "The packages could not be installed. The last lines of .venv/install.log:"
    tail -n 15 "$log" | sed -E 's#[a-z+]+://[^ ,)]*#(address)#g' >&2
    say "With the network back, run this again: it goes on from here."
    return 1
  }
}

make_environment() {
  local stamp="$ROOT/.venv/.complete" python wanted
  if [ -x "$PYTHON" ] && is_new_enough "$PYTHON"; then
    wanted="$(hash_of_lock "$PYTHON") $ROOT"
    if [ -f "$stamp" ] && [ "$(cat -- "$stamp")" = "$wanted" ]; then
      return 0
    fi
  else
    python="$(find_python)" || return 1
    say "Making .venv with $("$python" --version 2>&1) ..."
    rm -rf -- "$ROOT/.venv"
    "$python" -m venv "$ROOT/.venv" >/dev/null 2>&1 ||
      { rm -rf -- "$ROOT/.venv" && command -v uv >/dev/null 2>&1 &&
        uv venv --quiet --python "$python" "$ROOT/.venv" >/dev/null 2>&1; } || {
      say "The module venv is missing from $python. On Debian or Ubuntu: apt-get install python3-venv"
      return 1
    }
    wanted="$(hash_of_lock "$PYTHON") $ROOT"
  fi
  rm -f -- "$stamp" # an interrupted installation is none
  say "Installing the packages of requirements.lock (once; some minutes) ..."
  install_packages || return 1
  # Lets notebooks opened in JupyterLab import nbhelpers from this checkout.
  "$PYTHON" -c 'import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "nbhelpers-checkout.pth").write_text(sys.argv[1] + "\n")' "$ROOT" || return 1
  printf '%s\n' "$wanted" >"$stamp"
}
