#!/usr/bin/env bash
# Makes the environment once, then runs the tests. Arguments go to pytest: ./run_tests.sh tests/reports -k html
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/workflow/environment.sh"
make_environment
cd -- "$ROOT"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m pytest "$@"
