"""`python -m smra_core`."""

import sys

from .cli import main

sys.exit(main())
