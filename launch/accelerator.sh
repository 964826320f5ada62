#!/usr/bin/env bash
# Measures everything that a GPU or TPU is good for, in one call of a few minutes; see `benchmark --suite accelerator`.
#
#   bash launch/accelerator.sh [--minutes 9] [--out runs/accelerator] [--config configs/cifar10.py --config.data.folder.path=DIR]
#   bash launch/accelerator.sh --rehearse                                            the same code, on any machine
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/environment.sh
source launch/environment.sh
prepare_environment
if command -v nvidia-smi >/dev/null 2>&1; then
    "$VENV_PYTHON" -c 'import jax_cuda12_plugin' 2>/dev/null || "$VENV_PYTHON" -m pip install --quiet -e '.[cuda]'
fi
exec "$VENV_PYTHON" -m prance_jax benchmark --suite accelerator --out runs/accelerator "$@"
