"""`python -m edgekit.cli`."""

import sys

from edgekit.cli import main

if __name__ == "__main__":
    sys.exit(main())
