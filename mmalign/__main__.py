"""`python -m mmalign`, which is how torchrun starts it."""

import sys

from mmalign.cli import main

sys.exit(main())
