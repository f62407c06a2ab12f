"""The evidence itself holds: no observer effect, no wrong weights, no blind weights, no silent loss."""

from typing import Any

from parity.case import ParityCase


def test_shadow_changes_nothing(pair_state: ParityCase, parity_evidence: Any) -> None:
    parity_evidence(pair_state, "observer_effect")


def test_weights_are_the_references(pair_state: ParityCase, parity_evidence: Any) -> None:
    parity_evidence(pair_state, "weight_differences")


def test_weights_can_show_bugs(pair_state: ParityCase, parity_evidence: Any) -> None:
    parity_evidence(pair_state, "blind_spots")


def test_decisions_are_replayed(pair_state: ParityCase, parity_evidence: Any) -> None:
    parity_evidence(pair_state, "unmatched_decisions")


def test_compiled_is_as_near_as_eager(pair_state: ParityCase, parity_evidence: Any) -> None:
    parity_evidence(pair_state, "compiled_apart")
