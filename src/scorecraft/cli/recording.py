"""Writing results into the checkout, where the README and `list` read them."""

from __future__ import annotations

from pathlib import Path

from scorecraft.catalog.records import checkout
from scorecraft.cli import UsageError


def require_checkout(what: str = "--record") -> Path:
    """The root of the checkout, in which alone results are recorded and papers laid out."""
    root = checkout()
    if root is None:
        raise UsageError(f"{what} writes into a checkout, and this is an installed copy: `pip install -e .` in a clone")
    return root
