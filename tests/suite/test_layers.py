"""Every layer of every block computes what the reference's layer computes, as precisely."""

from typing import Any

from parity.case import ParityCase


def test_layer(layer_case: ParityCase, parity_check: Any) -> None:
    parity_check(layer_case)
