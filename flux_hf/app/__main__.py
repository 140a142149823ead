# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""`python -m flux_hf.app`."""

import sys

from .command import main


if __name__ == "__main__":
    sys.exit(main())
