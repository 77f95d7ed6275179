"""``python -m masksd`` is the ``masksd`` program."""

import sys

from masksd.kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
