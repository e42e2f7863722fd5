"""`python -m cover`, as `torchrun -m cover` starts it."""

import sys

from cover.cli import main

sys.exit(main())
