"""`python -m palimpsest` is `python main.py`."""

import sys

from palimpsest.main import command

sys.exit(command())
