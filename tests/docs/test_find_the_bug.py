"""docs/find-the-bug.md says what failing runs say."""

from __future__ import annotations

import pytest
import torch

from benchmarks.detect.shared import Held
from parity.pair import Build
from parity.run import Options
from scripts.find_the_bug import HEAD, PAGE, SHOWN, Shown, first_failure, normalised, section

TEXT = normalised(PAGE.read_text(encoding="utf-8"))
MEND = "run: make find-the-bug"


@pytest.fixture(scope="module")
def held() -> dict[torch.dtype, Held]:
    """Originals by dtype, shared."""
    return {dtype: Held(Build(dtype=dtype), Options(singles=0)) for dtype in (torch.float32, torch.bfloat16)}


@pytest.mark.parametrize("shown", [SHOWN[n] for n in (0, 2, 6, 9)], ids=lambda shown: shown.category)
def test_a_section_says_what_its_run_says(held: dict[torch.dtype, Held], shown: Shown) -> None:
    assert normalised(section(shown, first_failure(shown, held[shown.dtype]))) in TEXT, MEND


def test_ten_bugs_of_ten_kinds_and_nothing_else() -> None:
    assert normalised(HEAD) in TEXT, MEND
    assert [line[3:] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("## ")] == [
        shown.category for shown in SHOWN
    ]
    assert len({shown.category for shown in SHOWN}) == 10


def test_numbers_may_differ_and_words_may_not() -> None:
    assert normalised("worst 2.5 at [0, 11]") == normalised("worst 0.3 at [7, 2]")
    assert normalised("worst 2.5 at [0, 11]") != normalised("best 2.5 at [0, 11]")
