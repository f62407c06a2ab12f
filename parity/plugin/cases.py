"""Cases as test parameters. Builds no model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from parity.plugin.options import chosen_pairs, settings_of

if TYPE_CHECKING:  # torch comes with these; see the package
    from parity.case import ParityCase
    from parity.engine import Engine

_ENGINE = pytest.StashKey["Engine"]()
_CASES = pytest.StashKey["list[ParityCase]"]()
_PLACES = pytest.StashKey["dict[str, tuple[ParityCase, int]]"]()
_FIXTURES: dict[str, Callable[[ParityCase], bool]] = {
    "case": lambda case: True,
    "block_case": lambda case: bool(case.block) and "." not in case.tap,
    "layer_case": lambda case: bool(case.block) and "." in case.tap,
    "outer_case": lambda case: not case.block,
}
_STATE = re.compile(r"\[([^-\]]+)-(?:.*-)?(lora_(?:on|off)(?:-[^\]]+)?)\]$")
OURS = frozenset(
    {"parity_check", "parity_evidence", "parity_state", "parity_engine", "parity_drawn", "parity_sensitivity"}
)
"""A test that asks for one of these asks for our cases; any other may use the word `case` as it likes."""


def engine_of(config: pytest.Config) -> Engine:
    """Return the engine, made once.

    Raises:
        UsageError: an option or a pair file is not usable.
    """
    if _ENGINE not in config.stash:
        from parity.engine import Engine

        config.stash[_ENGINE] = Engine(chosen_pairs(config), settings_of(config))
    return config.stash[_ENGINE]


def cases_of(config: pytest.Config) -> list[ParityCase]:
    """Return every case, listed once.

    Raises:
        ParityError: an option or a pair file is not usable.
    """
    if _CASES not in config.stash:
        from parity.case import all_cases

        engine = engine_of(config)
        config.stash[_CASES] = all_cases((p, engine.settings.build(p)) for p in engine.pairs.values())
    return config.stash[_CASES]


def are_listed(config: pytest.Config) -> bool:
    """Say whether anything has asked for cases: else no test is one, whatever its id looks like."""
    return _CASES in config.stash


def case_of(config: pytest.Config, nodeid: str) -> ParityCase | None:
    """Return the case of a test id, None for a test that is no case."""
    if not are_listed(config):
        return None
    found = _places(config).get(nodeid.rpartition("[")[2].removesuffix("]"))
    return None if found is None else found[0]


def place_of(config: pytest.Config, case: ParityCase) -> int:
    """Return a case's place among the cases of its pair and state."""
    return _places(config)[case.id][1]


def _places(config: pytest.Config) -> dict[str, tuple[ParityCase, int]]:
    if _PLACES not in config.stash:
        count: Counter[tuple[str, str]] = Counter()
        places = config.stash[_PLACES] = {}
        for case in cases_of(config):
            places[case.id] = (case, count[case.pair, case.state])
            count[case.pair, case.state] += 1
    return config.stash[_PLACES]


def state_of(nodeid: str) -> str | None:
    """Return pair and state of a test id, None for tests that are no parity cases.

    >>> state_of("tests/suite/test_blocks.py::test_block[my_pair-block07-self_attn-lora_on-image]")
    'my_pair-lora_on-image'
    >>> state_of("tests/unit/test_io.py::test_hash[float32]") is None
    True
    """
    found = _STATE.search(nodeid)
    return f"{found[1]}-{found[2]}" if found else None


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Give a test the cases its fixtures ask for.

    Raises:
        ParityError: an option or a pair file is not usable.
    """
    for name, wanted in _FIXTURES.items():
        if name in metafunc.fixturenames:
            _parametrize(metafunc, name, {c.id: c for c in cases_of(metafunc.config) if wanted(c)})
    for name in sorted({"drawn_case", "input_case"}.intersection(metafunc.fixturenames)):
        from parity.plugin.drawn_cases import CASES

        _parametrize(metafunc, name, {c.id: c for c in CASES[name](engine_of(metafunc.config))})
    if "pair_state" in metafunc.fixturenames:
        states: dict[str, ParityCase] = {}
        for case in cases_of(metafunc.config):
            states.setdefault(f"{case.pair}-{case.state}", case)
        _parametrize(metafunc, "pair_state", states)


def _parametrize(metafunc: pytest.Metafunc, name: str, cases: dict[str, ParityCase]) -> None:
    metafunc.parametrize(name, [pytest.param(c, id=id, marks=pytest.mark.parity) for id, c in cases.items()])
