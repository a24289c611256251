#!/usr/bin/env bash
# Makes the environment once, then runs the notebooks that are out of date. ./run_all.sh --help tells more.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/workflow/environment.sh"
make_environment
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m nbhelpers "$@"
