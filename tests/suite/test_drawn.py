"""Both sides are the same function, as precisely computed, on whatever inputs the pair says it takes."""

from typing import Any

from parity.case import ParityCase


def test_drawn_inputs(drawn_case: ParityCase, parity_drawn: Any) -> None:
    parity_drawn(drawn_case)
