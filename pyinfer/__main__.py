"""`python -m pyinfer` is `pyinfer`."""

from __future__ import annotations

import sys

from pyinfer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
