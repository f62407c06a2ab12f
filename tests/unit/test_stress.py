"""What a run leaves behind in its process: nothing. `benchmarks/bench_stress.py` runs whole suites 200 times."""

from __future__ import annotations

import gc
from collections import Counter

import pytest
import torch

from fixtures.tiny import edited, gelu_erf, output_of, tiny_pair
from parity.case import all_cases
from parity.engine import Engine, Settings
from parity.errors import ParityError
from parity.pair import Build, ModelPair

pytestmark = pytest.mark.usefixtures("one_thread")
BEFORE, RUNS = 2, 4
"""Runs that fill what is kept on purpose (torch's caches, idle buffers), and runs that must add nothing."""


@pytest.fixture(scope="module", autouse=True)
def counted_from_here() -> None:
    """Leave out what is held already: what other tests of this process left is not counted again and again."""
    gc.collect()
    gc.freeze()


def fail(y: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("planted")


PAIRS: dict[str, ModelPair] = {
    "lora": tiny_pair("lora", depth=1),
    "different": edited(tiny_pair("different", lora=None), gelu_erf),
    "failing": edited(tiny_pair("failing", depth=1, lora=None), output_of("blocks.0.up", fail)),
}


def run_once(pair: ModelPair) -> None:
    engine = Engine({pair.name: pair}, Settings())
    for case in all_cases([(pair, Build())]):
        try:
            engine.case_record(case)
            engine.state_record(case)
        except ParityError:
            assert pair.name == "failing"
    engine.close()


def kinds() -> Counter[str]:
    gc.collect()
    return Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.get_objects())


@pytest.mark.parametrize("name", PAIRS)
def test_runs_leave_no_objects(name: str) -> None:
    for _ in range(BEFORE):
        run_once(PAIRS[name])
        before = kinds()  # counting makes objects of its own, the first time
    for _ in range(RUNS):
        run_once(PAIRS[name])
    more = kinds() - before
    assert sum(more.values()) < RUNS, f"at least one object a run: {more.most_common(5)}"


def test_a_kept_session_is_seen() -> None:
    kept = []
    before = kinds()
    for _ in range(3):
        kept.append(tiny_pair("kept").reference.build(Build()))
    assert (kinds() - before)["torch.nn.modules.linear.Linear"] >= 3
