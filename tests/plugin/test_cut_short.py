"""A run that is cut short, or of some cases only, leaves a record that says so; that of a whole run is not lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.project import ROOT, Project, Run
from parity.errors import RecordError
from parity.io.atomic import uninterrupted
from parity.io.records import read_record
from parity.runs import RunBook

INTERRUPT = "import os, signal\ninterrupt = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
SMALL = "PAIR = tiny_pair('small', depth=1, lora=None)"
SMALL_CASES = 10

MOMENTS = {
    "collection": (INTERRUPT + "interrupt()\n" + SMALL.replace("small", "zoo"), 0),
    "building": (INTERRUPT + "PAIR = edited(tiny_pair('zoo', depth=1), lambda model: interrupt())", SMALL_CASES),
    "first forward": (
        INTERRUPT + "PAIR = edited(tiny_pair('zoo', depth=1), output_of('head', lambda y: (interrupt(), y)[1]))",
        SMALL_CASES,
    ),
    "second state": (
        INTERRUPT + "p = tiny_pair('zoo', depth=1)\n"
        "PAIR = replace(p, lora=lambda build, model: (interrupt(), p.lora(build, model))[1])",
        2 * SMALL_CASES,
    ),
}


@pytest.fixture(autouse=True)
def _interrupts_arrive() -> Iterator[None]:
    """Take interrupts also where the whole run was started in the background, which ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def check_partial(run: Run, cases: int) -> None:
    """A usable record of what was judged, marked as cut short, and nothing else in the folder."""
    assert run.record["complete"] is False
    assert len(run.outcomes) == cases
    assert set(run.outcomes.values()) == {"passed"}
    assert run.files == ["parity.json"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupt_at_any_time_leaves_a_record_of_what_was_judged(project: Project, moment: str) -> None:
    text, cases = MOMENTS[moment]
    project.pair("small", SMALL)
    project.pair("zoo", text)
    run = project.run("-q")
    assert run.code == pytest.ExitCode.INTERRUPTED
    assert run.has_record is bool(cases)
    if cases:
        check_partial(run, cases)
    project.pair("zoo", SMALL.replace("small", "zoo"))
    assert project.run("-q").code == 0, "what was left behind blocks the next run"


def test_interrupt_while_a_case_is_looked_up(project: Project) -> None:
    project.suite = INTERRUPT + project.suite + "    if case.tap == 'text_embed': interrupt()\n"
    project.pair("small", SMALL)
    run = project.run("-q")
    assert run.code == pytest.ExitCode.INTERRUPTED
    check_partial(run, 2)


def test_interrupt_while_the_record_is_written_waits_for_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def interrupted(number: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        sync(number)

    monkeypatch.setattr("os.fsync", interrupted)
    project.pair("small", SMALL)
    run = project.run("-q")
    assert run.code == pytest.ExitCode.INTERRUPTED
    assert len(run.outcomes) == SMALL_CASES
    assert run.files == ["parity.json"]


def test_interrupts_are_put_off_once_and_not_lost() -> None:
    done = []

    def interrupted() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("went on")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["went on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_killed_run_leaves_the_states_before_it(project: Project) -> None:
    project.pair("small", SMALL)
    kill = "import os, signal\nkill = lambda model: os.kill(os.getpid(), signal.SIGKILL)\n"
    project.pair("zoo", kill + "PAIR = edited(tiny_pair('zoo', depth=1), kill)")
    run = project.run("-q", apart=True)
    assert run.code == -signal.SIGKILL
    assert run.record["complete"] is False
    assert len(run.outcomes) == SMALL_CASES
    project.pair("zoo", SMALL.replace("small", "zoo"))
    assert project.run("-q").files == ["parity.json"]


def test_interrupted_command_leaves_a_record(project: Project) -> None:
    project.pair("zoo", MOMENTS["second state"][0])
    command = [sys.executable, "-c", "from parity.cli import main; main()", "run", "zoo"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    record = read_record(project.pytester.path / "reports" / "parity.json")
    assert done.returncode == 130
    assert record["complete"] is False
    assert len(record["cases"]) == SMALL_CASES
    assert "Traceback" not in done.stderr


# --- a record of some cases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selection",
    [("-k", "final"), ("test_suite.py::test_parity[small-block0-lora_off]",), ("--deselect", "test_suite.py::test_a")],
)
def test_record_of_some_cases_says_so_and_keeps_the_whole_one(project: Project, selection: tuple[str, ...]) -> None:
    project.suite += "\ndef test_a(case, parity_check):\n    pass\n"
    project.pair("small", SMALL)
    whole = project.run("-q").record
    assert whole["selected"] is False
    run = project.run("-q", *selection)
    assert (run.record["selected"], run.record["complete"]) == (True, True)
    assert run.kept == whole
    assert "record     reports/parity.json (a selection)" in run.text
    assert f"reports/whole.json keeps the whole run of {whole['created']}" in run.text
    assert project.run("-q", "-k", "sinusoid").kept == whole
    again = project.run("-q")
    assert again.kept is None
    assert again.record["selected"] is False


def test_last_failed_is_a_selection(project: Project) -> None:
    project.pair("faulty", "PAIR = edited(tiny_pair('faulty', lora=None), gelu_erf)")
    plugins = ("-p", "cacheprovider")
    whole = project.run("-q", *plugins).record
    run = project.run("-q", "--lf", *plugins)
    assert run.code == 1
    assert list(run.outcomes) == ["faulty-block1-act-lora_off"]
    assert run.record["selected"] is True
    assert run.kept == whole


def test_other_tests_left_out_make_no_selection(project: Project) -> None:
    project.suite += "\ndef test_other(): pass\n"
    project.pair("small", SMALL)
    assert project.run("-q", "-m", "parity").record["selected"] is False


def test_cut_short_run_keeps_the_whole_one(project: Project) -> None:
    text = "p = tiny_pair('small', depth=1, lora=None)\nPAIR = edited(p, lambda model: setattr(model, 'head', {}))"
    project.pair("small", text.format("model.head"))
    whole = project.run("-q").record
    project.pair("small", text.format("torch.nn.Identity()"))
    run = project.run("-q", "-x")
    assert run.record["complete"] is False
    assert run.kept == whole


def test_damaged_record_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "parity.json").write_text("{")
    book = RunBook(tmp_path)
    book.write(selected=True)
    assert [file.name for file in tmp_path.iterdir()] == ["parity.json"]
    assert book.told() == [f"{tmp_path / 'parity.json'} (a selection)"]


def test_command_with_a_selection_keeps_the_whole_one(project: Project) -> None:
    from typer.testing import CliRunner

    from parity.cli import app

    project.pair("zoo", "PAIR = tiny_pair('zoo', depth=1)")
    assert CliRunner().invoke(app, ["run", "zoo"]).exit_code == 0
    whole = read_record("reports/parity.json")
    shown = CliRunner().invoke(app, ["run", "zoo", "--lora", "on"]).stdout
    assert read_record("reports/whole.json") == whole
    assert read_record("reports/parity.json")["selected"] is True
    assert "record: reports/whole.json keeps the whole run of" in shown


# --- the disk ---------------------------------------------------------------------------------------------------------

FULL = """
import resource, signal, sys
from pathlib import Path
from parity.runs import RunBook
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
book = RunBook(Path("reports"))
book.write()
book.add_case({"id": "x" * 100000, "pair": "p", "state": "s", "outcome": "passed", "verdict": "bit-exact"})
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    book.write(complete=False)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_full_disk_is_an_error_and_nothing_is_lost(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FULL], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stdout == "RecordError no record can be written below reports: File too large\n"
    assert [file.name for file in (tmp_path / "reports").iterdir()] == ["parity.json"]
    assert read_record(tmp_path / "reports" / "parity.json")["complete"] is True


def test_full_disk_while_the_whole_record_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunBook(tmp_path).write()
    before = (tmp_path / "parity.json").read_bytes()

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RecordError, match="No space left on device"):
        RunBook(tmp_path).write(selected=True)
    assert [file.name for file in tmp_path.iterdir()] == ["parity.json"]
    assert (tmp_path / "parity.json").read_bytes() == before


def test_command_on_a_full_disk_exits_2_and_shows_what_was_found(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from parity.cli import app

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    project.pair("zoo", SMALL.replace("small", "zoo"))
    done = CliRunner().invoke(app, ["run", "zoo"])
    assert done.exit_code == 2
    assert "no record can be written below reports: No space left on device" in done.stderr
    assert not list((project.pytester.path / "reports").iterdir())
