"""`python -m mira`."""

import sys

from mira.cli import main

sys.exit(main())
