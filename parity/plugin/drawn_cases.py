"""Cases of drawn inputs and of sensitivity. Builds no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from parity.case import ParityCase
from parity.engine import Engine
from parity.pair import Build, ModelPair
from parity.sensitivity import base_inputs, named


def drawn_cases(engine: Engine) -> Iterator[ParityCase]:
    """List a case for each pair that says what its inputs can vary, LoRA off and on."""
    for pair in engine.pairs.values():
        if pair.space is not None and pair.drawn is not None:
            for lora in (False, True) if pair.lora is not None else (False,):
                yield ParityCase(pair.name, "drawn", "", lora)


def input_cases(engine: Engine) -> Iterator[ParityCase]:
    """List a case for each input of each pair."""
    for pair in engine.pairs.values():
        for name in _input_names(pair, engine.settings.build(pair)):
            yield ParityCase(pair.name, f"input.{name}", "", False)


def _input_names(pair: ModelPair, build: Build) -> list[str]:
    """Return the names of a pair's inputs; "all" where they cannot be made, whose case then says why."""
    try:
        return named(base_inputs(pair, Build(pair.sizes[0], build.dtype)))
    except Exception:
        return ["all"]


CASES: dict[str, Callable[[Engine], Iterator[ParityCase]]] = {"drawn_case": drawn_cases, "input_case": input_cases}
"""Which cases a test gets that asks for one of these."""
