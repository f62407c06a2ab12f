"""Write docs/find-the-bug.md: for ten bugs of different kinds, what a failing run says.

Run `python scripts/find_the_bug.py`; `--check` writes nothing and exits 1 where the page no longer says what runs say.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.detect.shared import Held, SharedEngine
from fixtures.mutations import ANATOMIES, MUTATIONS, Spot
from fixtures.pairs.longcat import PAIR, inputs_of
from fixtures.plants import PLANTS
from parity.case import ParityCase, cases_of
from parity.pair import Build, ModelPair
from parity.report.wording import failure_text, fitted
from parity.run import Options

PAGE = Path(__file__).resolve().parents[1] / "docs" / "find-the-bug.md"
BASE = replace(PAIR, inputs=partial(inputs_of, tokens=32), variants={}, lanes={})
WIDTH = 80
Plant = Callable[[ModelPair], ModelPair]


@dataclass(frozen=True)
class Shown:
    """A bug that is shown.

    Args:
        category: as bugs have it. title: what was done wrong. then: what to change, as a person reads it.
        plant: the bug. dtype: of the run. lora: whether it shows with the LoRA on.
    """

    category: str
    title: str
    then: str
    plant: Plant
    dtype: torch.dtype = torch.float32
    lora: bool = False


def _planted(name: str) -> Plant:
    return PLANTS[name].apply


def _mutated(name: str, *blocks: int) -> Plant:
    return lambda pair: MUTATIONS[name].apply(pair, ANATOMIES["longcat"], Spot(blocks))


SHOWN: tuple[Shown, ...] = (
    Shown("precision", "The modulation's linear layer runs in bfloat16, the original's in float32",
          "Run that layer in float32, as the original does.", _planted("adaln_low"), torch.bfloat16),
    Shown("RoPE", "Height and width have changed places in the rotary embedding",
          "Order the axes as the original does.", _planted("rope_axes")),
    Shown("norm", "The layer norms have eps 1e-5, the original's 1e-6", "Pass eps=1e-6.", _planted("eps_1e_5")),
    Shown("attention", "The softmax scale is half of what it should be",
          "Leave the factor out of the scale.", _planted("softmax_scale")),
    Shown("activation", "The text MLP uses the exact GELU, the original the tanh form",
          'Pass approximate="tanh".', _planted("gelu_erf")),
    Shown("modulation", "Shift and scale have changed places", "Unpack shift first, then scale.",
          _planted("scale_shift_swapped")),
    Shown("weights", "A converter wrote to_q's weights where to_k's belong, and the other way",
          "Mend the converter's names; the code is right.", _planted("qk_swapped")),
    Shown("LoRA", "alpha / rank is forgotten when the adapter is applied", "Multiply by alpha / rank, 2 here.",
          _planted("lora_alpha_ignored"), lora=True),
    Shown("timestep", "The timestep is divided by 1000 on its way into the model",
          "Hand it over in the original's range.", _planted("timestep_scale")),
    Shown("layout", "Rows and columns of an output patch have changed places",
          "Order a patch's channels as the original does.", _mutated("patch_rows_columns")),
)  # fmt: skip
"""Ten bugs, each of another category."""

HEAD = """# From a failure to its fix: ten bugs

A failing case ends with what to do. Read it in this order:

1. `starts here` or `first difference of this run`: in lockstep each tap stands for its own segment, so begin with the
   case that says `starts here`; other cases may be the same bug in other blocks.
2. `native:` is the module, and `likely:` names the change that makes the two sides one function again, with the number
   it comes down to, or the rounding that makes them bit-exact, with the line of code. "weights, not code" means that
   the checkpoint or its loader is wrong and the code need not be looked at.
3. Make the change, and run the line behind `rerun:`. It passes when nothing else is wrong in that segment.

Where no edit is found, `likely:` says what shape the difference has, or the first op in which the two sides part with
both lines; [diagnosis.md](diagnosis.md) says how each is found.

Below, ten bugs are planted into the bundled port, one at a time, and this is the first failing case of each run.
Written by `python scripts/find_the_bug.py`.
"""


def first_failure(shown: Shown, held: Held) -> str:
    """Run a bug and return what its first failing case says."""
    engine = SharedEngine(shown.plant(BASE), held)
    cases = [c for c in cases_of(BASE, held.build) if c.lora == shown.lora]
    case = next(c for c in cases if engine.judged(c).fails)
    failing = sum(engine.judged(c).fails for c in cases)
    text = failure_text(engine.case_record(case), rerun_of(case))
    return "\n".join([fitted(text, WIDTH), f"{failing} failed of {len(cases)} cases with {_state(case)}"])


def _state(case: ParityCase) -> str:
    return f"the LoRA {'on' if case.lora else 'off'}"


def rerun_of(case: ParityCase) -> str:
    """Return the line that runs a case again."""
    return f'pytest -m parity -k "{case.id}"'


def sections() -> Iterator[tuple[Shown, str]]:
    """Run every bug; those of one dtype share the original."""
    held: dict[torch.dtype, Held] = {}
    for shown in SHOWN:
        own = held.setdefault(shown.dtype, Held(Build(dtype=shown.dtype), Options(singles=0)))
        yield shown, first_failure(shown, own)


def section(shown: Shown, text: str) -> str:
    """Return the part of the page on one bug."""
    return f"## {shown.category}\n\n{shown.title}.\n\n```text\n{text}\n```\n\n{shown.then}\n"


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *(section(*one) for one in sections())])


def normalised(text: str) -> str:
    """Replace what depends on the machine: numbers, and where lines break.

    >>> normalised("logic_error 4.5e-06 (limit 1e-12)")
    'logic_error # (limit #)'
    """
    return " ".join(re.sub(r"\d+(\.\d+)?([eE][+-]?\d+)?", "#", text).split())


def main() -> int:
    """Write the page, or check it; return an exit code."""
    torch.set_num_threads(1)
    text = page()
    if "--check" in sys.argv[1:]:
        return int(normalised(text) != normalised(PAGE.read_text(encoding="utf-8")))
    PAGE.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
