"""Cases: pair x tap x LoRA x inputs. A case owns its id; nothing is built to know it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from parity.errors import ParityError
from parity.execution.tap import Tap
from parity.pair import Build, ModelPair, in_variant, variants_of


@dataclass(frozen=True)
class ParityCase:
    """One test.

    Args:
        pair: the pair's name. tap: the tap's name. block: its block, "" outside blocks.
        lora: whether the LoRA is on. variant: the kind of inputs, "" for the default.
    """

    pair: str
    tap: str
    block: str
    lora: bool
    variant: str = ""

    @property
    def id(self) -> str:
        """`longcat-block07-self_attn-lora_on`; further parts last where there are several inputs."""
        parts = [self.pair, *self.tap.split("."), self.state]
        return "-".join(parts)

    @property
    def state(self) -> str:
        """`lora_on`, `lora_off`, with the inputs' name behind where there are several."""
        return ("lora_on" if self.lora else "lora_off") + (f"-{self.variant}" if self.variant else "")


def cases_of(pair: ModelPair, build: Build) -> Iterator[ParityCase]:
    """List a pair's cases, state by state, taps in execution order. Builds no model."""
    for variant in variants_of(pair):
        taps = [t for t in in_variant(pair, variant).taps(build) if t.reference and t.native]
        for lora in (False, True) if pair.lora is not None else (False,):
            for tap in taps:
                yield ParityCase(pair.name, tap.name, tap.block, lora, variant)


def all_cases(pairs: Iterable[tuple[ModelPair, Build]]) -> list[ParityCase]:
    """List the cases of several pairs; a pair without any gets one, which fails and says why.

    Raises:
        ParityError: two cases have one id.
    """
    cases = [c for pair, build in pairs for c in _some_cases_of(pair, build)]
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise ParityError(f"two cases have the id {case.id!r}: tap names of a pair must be unique")
        seen.add(case.id)
    return cases


def _some_cases_of(pair: ModelPair, build: Build) -> list[ParityCase]:
    """List a pair's cases, never none: no parameters would pass, and an error here would stop other pairs."""
    try:
        cases = list(cases_of(pair, build))
    except Exception:
        cases = []  # the same error comes again, in this case's test, when the pair is loaded
    return cases or [ParityCase(pair.name, "final_output", "", False)]


def absent_taps(taps: Iterable[Tap]) -> dict[str, str]:
    """Return the taps one side lacks, with the reason the pair gives."""
    return {
        t.name: f"absent on the {'reference' if t.reference is None else 'native'}: {t.absent or 'no reason given'}"
        for t in taps
        if t.reference is None or t.native is None
    }
