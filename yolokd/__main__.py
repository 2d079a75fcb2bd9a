"""``python -m yolokd`` is ``yolokd``."""

import sys

from yolokd.cli import main

if __name__ == "__main__":
    sys.exit(main())
