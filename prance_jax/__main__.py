"""Runs the command line: python -m prance_jax."""

import sys

from prance_jax.cli import main

sys.exit(main())
