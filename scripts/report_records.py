"""Records of planted bugs that the report's screenshots and browser tests are made from."""

from __future__ import annotations

import sys
from functools import reduce
from pathlib import Path

from fixtures.pairs.longcat import PAIR
from fixtures.plants import PLANTS
from parity.case import cases_of
from parity.commands.run import judge_cases
from parity.engine import Engine, Settings
from parity.pair import ModelPair
from parity.runs import RunBook

RUNS: dict[str, tuple[str, ...]] = {
    "passing": (),
    "failing": ("rope_axes", "gate_omitted", "adaln_low"),
    "lora": ("lora_alpha_ignored",),
    "earlier": ("gate_omitted", "adaln_low", "norm_low"),
}
"""Per record, the bugs in it."""


def planted(names: tuple[str, ...]) -> ModelPair:
    """Return the bundled pair with bugs in its native."""
    return reduce(lambda pair, name: PLANTS[name].apply(pair), names, PAIR)


def write(name: str, folder: Path) -> Path:
    """Judge the pair with the bugs of a record and write it; return its path."""
    pair = planted(RUNS[name])
    engine, book = Engine({pair.name: pair}, Settings()), RunBook(folder / name)
    cases = list(cases_of(pair, engine.settings.build(pair)))
    judge_cases(engine, cases, book, False, f"parity run {pair.name}")
    return folder / name / "parity.json"


if __name__ == "__main__":
    for one in sys.argv[2:] or RUNS:
        print(write(one, Path(sys.argv[1])))
