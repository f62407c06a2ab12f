"""Each input does to the native's output what it does to the reference's: none is accepted and ignored."""

from typing import Any

from parity.case import ParityCase


def test_input_is_read_alike(input_case: ParityCase, parity_sensitivity: Any) -> None:
    parity_sensitivity(input_case)
