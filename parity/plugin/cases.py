"""Cases as test parameters. Builds no model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from parity.case import ParityCase, all_cases
from parity.engine import Engine
from parity.plugin.drawn_cases import CASES as DRAWN_CASES
from parity.plugin.options import chosen_pairs, settings_of

_ENGINE = pytest.StashKey[Engine]()
_CASES = pytest.StashKey[list[ParityCase]]()
_FIXTURES: dict[str, Callable[[ParityCase], bool]] = {
    "case": lambda case: True,
    "block_case": lambda case: bool(case.block) and "." not in case.tap,
    "layer_case": lambda case: bool(case.block) and "." in case.tap,
    "outer_case": lambda case: not case.block,
}
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
        config.stash[_ENGINE] = Engine(chosen_pairs(config), settings_of(config))
    return config.stash[_ENGINE]


def cases_of(config: pytest.Config) -> list[ParityCase]:
    """Return every case, listed once.

    Raises:
        ParityError: an option or a pair file is not usable.
    """
    if _CASES not in config.stash:
        engine = engine_of(config)
        config.stash[_CASES] = all_cases((p, engine.settings.build(p)) for p in engine.pairs.values())
    return config.stash[_CASES]


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Give a test the cases its fixtures ask for.

    Raises:
        ParityError: an option or a pair file is not usable.
    """
    for name, wanted in _FIXTURES.items():
        if name in metafunc.fixturenames:
            _parametrize(metafunc, name, {c.id: c for c in cases_of(metafunc.config) if wanted(c)})
    for name, listed in DRAWN_CASES.items():
        if name in metafunc.fixturenames:
            _parametrize(metafunc, name, {c.id: c for c in listed(engine_of(metafunc.config))})
    if "pair_state" in metafunc.fixturenames:
        states: dict[str, ParityCase] = {}
        for case in cases_of(metafunc.config):
            states.setdefault(f"{case.pair}-{case.state}", case)
        _parametrize(metafunc, "pair_state", states)


def _parametrize(metafunc: pytest.Metafunc, name: str, cases: dict[str, ParityCase]) -> None:
    metafunc.parametrize(name, [pytest.param(c, id=id, marks=pytest.mark.parity) for id, c in cases.items()])
