"""Each side does to every layer what the LoRA's file says, nothing before it is loaded and nothing after it is gone."""

from typing import Any

from parity.case import ParityCase


def test_lora_is_what_its_file_says(pair_state: ParityCase, parity_evidence: Any) -> None:
    parity_evidence(pair_state, "lora_findings")
