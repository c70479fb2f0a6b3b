"""``python -m sterna`` is ``sterna``."""

import sys

from sterna.cli.main import main

sys.exit(main())
