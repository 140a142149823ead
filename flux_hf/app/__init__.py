# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""A page to try a checkpoint on: labels, kept patches, and budgets side by side. `python -m flux_hf.app --help`."""

from .command import main


__all__ = ["main"]
