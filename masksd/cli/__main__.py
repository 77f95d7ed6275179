"""``python -m masksd.cli`` is the ``masksd`` program."""

import sys

from masksd.cli import main

if __name__ == "__main__":
    sys.exit(main())
