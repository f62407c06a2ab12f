"""pytest-xdist: the same cases and outcomes as in one process, and a state stays on one worker."""

from __future__ import annotations

import pytest
import torch

from fixtures.project import Project
from fixtures.scheduling import ByFile
from parity.plugin.options import settings_of
from parity.plugin.parallel import state_of
from parity.report.record import comparable

PAIR = """
import os
def build(model):
    note("built_by_" + os.environ.get("PYTEST_XDIST_WORKER", "main"))
    note(f"{torch.get_num_threads()}_threads_{os.environ.get('OMP_WAIT_POLICY')}")
PAIR = edited(edited(tiny_pair('faulty'), gelu_erf), build)
"""
DYING = """
import os, signal
def die(y):
    note("died")
    os.kill(os.getpid(), signal.SIGKILL)
PAIR = edited(tiny_pair('dying', depth=2, lora=None), output_of('head', die))
"""


def test_two_workers_find_what_one_process_finds(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    project.pair("faulty", PAIR)
    alone = project.run("-q")
    expected = comparable(alone.record)
    assert project.noted == ["built_by_main", "2_threads_None"]
    project.calls.unlink()
    both = project.run("-q", "-n", "2", apart=True)
    assert both.code == alone.code == 1
    assert comparable(both.record) == expected
    assert [case["id"] for case in both.record["cases"]] == list(alone.outcomes)
    assert both.result.parseoutcomes() == alone.result.parseoutcomes() == {"failed": 2, "passed": 28}
    assert project.noted.count("2_threads_passive") == 2, "with another number of threads sums have other low bits"
    assert sorted(project.noted)[2:] == ["built_by_gw0", "built_by_gw1"], "a state ran on more than one worker"


def test_what_is_not_compared_are_times_and_memory(project: Project) -> None:
    project.pair("small", "PAIR = tiny_pair('small', depth=1, lora=None)")
    record = project.run("-q").record
    (state,), (left,) = record["pairs"], comparable(record)["pairs"]
    assert set(record) - set(comparable(record)) == {"created"}
    assert set(state) - set(left) == {"seconds", "peak_memory_bytes"}


def test_a_dead_worker_costs_one_state_and_is_told(project: Project) -> None:
    project.pair("dying", DYING)
    project.pair("small", "PAIR = tiny_pair('small', depth=1)")
    run = project.run("-q", "-n", "2", apart=True)
    assert run.code == 1
    assert project.noted == ["died"], "another worker went on with what one had died of"
    assert run.record["complete"] is False
    assert len(run.cases("passed")) == 20
    errors = run.cases("error")
    assert len(errors) == 15
    assert errors[0] == "dying-patch_embed-lora_off", "not in execution order"
    assert run.result.parseoutcomes() == {"passed": 20, "failed": 15}
    lines = run.message(errors[3])[1:]  # the first is xdist's: which worker
    assert "crashed while running dying lora_off: killed, or out of memory" in lines[0]
    assert "in one process (-n 0), with a smaller --parity-size" in lines[1]
    assert "rerun: pytest" in lines[2]
    assert "15 cases could not be run (lora_off): worker 'gw" in run.text


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


@pytest.mark.parametrize(
    ("nodeid", "scope"),
    [
        ("tests/suite/test_layers.py::test_layer[longcat-block0-ffn-lora_on]", "longcat-lora_on"),
        ("tests/suite/test_evidence.py::test_plain", "tests/suite/test_evidence.py"),
        ("tests/unit/test_lanes.py::test_lane[tiny-lora_on]", "tests/unit/test_lanes.py"),
    ],
)
def test_this_project_hands_out_states_of_its_suite_and_files_of_all_else(nodeid: str, scope: str) -> None:
    assert ByFile.__new__(ByFile)._split_scope(nodeid) == scope
