"""`python -m mira.cli`."""

import sys

from mira.cli import main

sys.exit(main())
