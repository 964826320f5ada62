#!/usr/bin/env bash
# Runs the test suite in the environment of launch/environment.sh; arguments go to pytest. It has two workers:
# most of the time is compilation, which uses one core.
#   bash launch/test.sh
#   bash launch/test.sh tests/training -x
#   WORKERS=0 bash launch/test.sh tests/selector --pdb
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
prepare_environment

exec "$VENV_PYTHON" -m pytest -n "${WORKERS:-2}" --dist loadfile "$@"
