"""Entry point of `python -m cover` and of `torchrun -m cover`."""

import sys

from cover.cli import main

sys.exit(main())
