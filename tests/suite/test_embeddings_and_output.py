"""What enters the blocks and what leaves them: embeddings, final layer, final output."""

from typing import Any

from parity.case import ParityCase


def test_outside_blocks(outer_case: ParityCase, parity_check: Any) -> None:
    parity_check(outer_case)
