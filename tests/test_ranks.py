"""Running ranks: what goes wrong on one of them is told."""

from __future__ import annotations

import os
import sys

import pytest
from tests.ranks import run_ranks


def raise_on_one(rank: int) -> None:
    print("said before", file=sys.stderr)
    if rank == 1:
        raise ValueError("not this one")


def abort_on_one(rank: int) -> None:
    if rank == 1:
        os.abort()


def test_the_error_of_a_rank_is_shown() -> None:
    with pytest.raises(AssertionError, match=r"(?s)ValueError: not this one.*rank 1: said before"):
        run_ranks(raise_on_one)


def test_a_rank_that_dies_says_where() -> None:
    with pytest.raises(AssertionError, match=r"(?s)SIGABRT.*rank 1: Fatal Python error.*abort_on_one"):
        run_ranks(abort_on_one)
