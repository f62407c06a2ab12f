"""A tap that a side never reaches fails its own case; all others are judged, however the reference is had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fixtures.project import Project
from fixtures.residency import Records, Ways, differences
from fixtures.tiny import edited, tiny_inputs, tiny_pair
from parity.pair import ModelPair
from parity.run import Options

pytestmark = pytest.mark.usefixtures("one_thread")


def forgets_norm(block: str, names: tuple[str, ...], when: Callable[[Tensor], bool] = lambda x: True) -> Any:
    """Return the edit after which a block leaves its norm out, of some inputs or of all."""

    def edit(model: nn.Module) -> None:
        module = model.get_submodule(block)
        forward, (up, act, down) = module.forward, (module.get_submodule(name) for name in names)
        module.__dict__["forward"] = lambda x: x + down(act(up(x))) if when(x) else forward(x)

    return edit


NATIVE, REFERENCE = ("up", "gelu", "down"), ("fc1", "act", "fc2")


def judged(pair: ModelPair, folder: Path) -> tuple[Records, Records]:
    ways = Ways(pair, folder, torch.float32, Options(twins=1, explain=False))
    return ways.together(), ways.one()


def failed(records: Records, state: str = "lora_off") -> dict[str, list[str]]:
    return {c["tap"]: c["reasons"] for c in records[0] if c["outcome"] == "failed" and c["state"] == state}


@pytest.mark.parametrize(("side", "block", "names", "path"), [
    ("native", "blocks.1", NATIVE, "blocks.1.ln"), ("reference", "layers.1", REFERENCE, "layers.1.norm"),
])  # fmt: skip
def test_the_rest_is_judged(tmp_path: Path, side: Any, block: str, names: tuple[str, ...], path: str) -> None:
    pair = edited(tiny_pair(lora=None), forgets_norm(block, names), side)
    together, one = judged(pair, tmp_path)
    assert differences(together, one) == []
    found = failed(together)
    assert list(found) == ["block1.norm", "block1.up"]
    assert found["block1.norm"][0].startswith(f"never reached: the {side} never calls {path} in this forward")
    assert {c["outcome"] for c in together[0] if c["tap"] not in found} == {"passed"}
    assert len(together[0]) == 15
    assert {c["first_different"] for c in together[0]} == {"block1.norm"}


def test_only_inputs_that_do_not_reach_it_fail(tmp_path: Path) -> None:
    pair = tiny_pair(lora=None, variants={"batch": partial(tiny_inputs, batch=2)})
    pair = edited(pair, forgets_norm("blocks.1", NATIVE, lambda x: len(x) > 1))
    together, one = judged(pair, tmp_path)
    assert differences(together, one) == []
    assert failed(together) == {}
    assert list(failed(together, "lora_off-batch")) == ["block1.norm", "block1.up"]


def test_a_function_that_is_the_same_fails_at_the_tap_alone(tmp_path: Path) -> None:
    """The port computes the norm itself: what is behind it must not fail for a restart that one side cannot make."""

    def edit(model: nn.Module) -> None:
        block = model.get_submodule("blocks.1")
        norm = block.get_submodule("ln")
        up, act, down = (block.get_submodule(name) for name in NATIVE)
        block.__dict__["forward"] = lambda x: x + down(act(up(type(norm).forward(norm, x))))

    pair = edited(tiny_pair(lora=None), edit)
    ways = Ways(replace(pair, dtypes=(torch.bfloat16,)), tmp_path, torch.bfloat16, Options(twins=1, explain=False))
    assert [list(failed(found)) for found in (ways.together(), ways.one())] == [["block1.norm"]] * 2


PORT = """
from tests_unreached import forgets_norm
PAIR = edited(tiny_pair("port", lora=None), forgets_norm("blocks.1", ("up", "gelu", "down")))
"""


def test_pytest_fails_the_case_and_runs_the_rest(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.pytester.path / "tests_unreached.py").write_text(Path(__file__).read_text(encoding="utf-8"))
    monkeypatch.syspath_prepend(str(project.pytester.path))
    project.pair("port", PORT)
    run = project.run("-q")
    assert run.code == 1
    assert run.cases("failed") == ["port-block1-norm-lora_off", "port-block1-up-lora_off"]
    text = " ".join(run.message("port-block1-norm-lora_off"))
    assert "never reached: the native never calls blocks.1.ln in this forward" in text
    assert len(run.cases("passed")) == 13
