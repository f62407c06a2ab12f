"""Every block computes what the reference's block computes, as precisely."""

from typing import Any

from parity.case import ParityCase


def test_block(block_case: ParityCase, parity_check: Any) -> None:
    parity_check(block_case)
