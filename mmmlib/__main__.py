"""``python -m mmmlib``."""

import sys

from mmmlib.cli import main

sys.exit(main())
