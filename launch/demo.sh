#!/usr/bin/env bash
# Trains and evaluates a cascade on the embedded digits. The machine needs only Python 3.11 or newer.
# After an interruption, run it again: it continues from the last checkpoint.
#   bash launch/demo.sh
#   WORKDIR=/tmp/demo bash launch/demo.sh --config.seeds=0,1
#   PYTHON=python3.12 bash launch/demo.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
prepare_environment
keep_freed_memory

workdir="${WORKDIR:-runs/demo}"
"$VENV_PYTHON" -m prance_jax train --config configs/demo.py --workdir "$workdir" "$@"

cat <<END

Everything is in $workdir
  report.html                its decisions in pictures: open it in a browser
  results.md, results.json   the table above
  accuracy.png               accuracy against MACs and against measured speed
  show/                      the pictures of the report
  metrics.jsonl              a line per logged step; tensorboard/ has the same
  config.json                the configuration and the command
  checkpoints/               the newest checkpoints of every stage
END
