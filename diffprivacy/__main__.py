"""``python -m diffprivacy``."""

import sys

from .cli import main

if __name__ == "__main__":  # workers of --jobs import this file again
    sys.exit(main())
