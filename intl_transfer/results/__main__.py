"""``python -m intl_transfer.results RUNS...``: the same as ``intl-transfer collect``."""

from __future__ import annotations

import sys

from intl_transfer.cli import main

if __name__ == "__main__":
    sys.exit(main(["collect", *sys.argv[1:]]))
