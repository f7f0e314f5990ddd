"""``python -m intl_transfer``, for ``torchrun -m``."""

import sys

from intl_transfer.cli import main

if __name__ == "__main__":
    sys.exit(main())
