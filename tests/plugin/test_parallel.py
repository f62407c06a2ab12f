"""pytest-xdist: the same cases and outcomes as in one process, and a state stays on one worker."""

from __future__ import annotations

import pytest

from fixtures.project import Project
from parity.plugin.options import settings_of
from parity.plugin.parallel import state_of

PAIR = """
import os
def build(model):
    note("built_by_" + os.environ.get("PYTEST_XDIST_WORKER", "main"))
PAIR = edited(edited(tiny_pair('faulty'), gelu_erf), build)
"""


def test_two_workers_find_what_one_process_finds(project: Project) -> None:
    project.pair("faulty", PAIR)
    alone = project.run("-q")
    expected = alone.record
    project.calls.unlink()
    both = project.run("-q", "-n", "2", apart=True)
    assert both.code == alone.code == 1
    assert both.outcomes == alone.outcomes
    assert both.result.parseoutcomes() == alone.result.parseoutcomes() == {"failed": 2, "passed": 28}
    assert [s["state"] for s in both.record["pairs"]] == [s["state"] for s in expected["pairs"]]
    assert sorted(project.noted) == ["built_by_gw0", "built_by_gw1"], "a state ran on more than one worker"


@pytest.mark.parametrize(
    ("nodeid", "state"),
    [
        ("t.py::test_block[longcat-block07-self_attn-lora_on]", "longcat-lora_on"),
        ("t.py::test_outside_blocks[longcat-final_output-lora_off-image]", "longcat-lora_off-image"),
        ("t.py::test_shadow_changes_nothing[longcat-lora_off]", "longcat-lora_off"),
        ("t.py::test_other[bfloat16-True]", None),
        ("t.py::test_plain", None),
    ],
)
def test_state_is_read_from_the_id(nodeid: str, state: str | None) -> None:
    assert state_of(nodeid) == state


def test_usage_errors_are_told_once_by_the_controller(project: Project) -> None:
    project.pair("small", "PAIR = tiny_pair('small', depth=1, lora=None)")
    run = project.run("-q", "-n", "2", "--parity-pair", "smal")
    assert run.code == pytest.ExitCode.USAGE_ERROR
    assert run.text.count("unknown pair 'smal'") == 1


@pytest.mark.parametrize(("given", "expected"), [("auto", "cuda:1"), ("cpu", "cpu"), ("cuda:0", "cuda:0")])
def test_worker_takes_a_gpu_of_its_own(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(request.config.option, "parity_device", given)
    monkeypatch.setattr(request.config, "workerinput", {"workerid": "gw3"}, raising=False)
    assert str(settings_of(request.config).device) == expected
