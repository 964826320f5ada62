#!/usr/bin/env bash
# Runs the test suite in the environment of launch/environment.sh; arguments go to pytest.
#   bash launch/test.sh
#   bash launch/test.sh tests/training -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
prepare_environment

exec "$VENV_PYTHON" -m pytest "$@"
