"""`parity report` and `--parity-html`: whole files or none, clear errors, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fixtures.project import Project
from fixtures.records import recorded
from parity.cli import app
from parity.io.atomic import locked
from parity.io.records import write_record

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_record(tmp_path / "parity.json", recorded("another_function"))


def called(*words: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, words)])


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) <= 5, result.stderr
    for word in words:
        assert word in result.stderr


def test_report_is_written_beside_the_record(run: Path) -> None:
    result = called(run)
    assert result.exit_code == 0, result.output
    assert (run.parent / "parity.html").read_text().startswith("<!doctype html>")
    assert sorted(p.name for p in run.parent.iterdir()) == ["parity.html", "parity.json"]
    assert "parity.html" in result.stdout


def test_json_says_where_and_how_large(run: Path, tmp_path: Path) -> None:
    found = json.loads(called(run, "-o", tmp_path / "new" / "r.html", "--json").stdout)
    assert Path(found["path"]).stat().st_size == found["bytes"]


def test_compare_names_what_changed(run: Path, tmp_path: Path) -> None:
    earlier = write_record(tmp_path / "earlier.json", recorded("healthy"))
    assert called(run, "--compare", earlier).exit_code == 0
    assert "Since the run of" in run.with_suffix(".html").read_text()


@pytest.mark.parametrize("opens", [True, False])
def test_open_hands_the_file_to_a_browser(run: Path, monkeypatch: pytest.MonkeyPatch, opens: bool) -> None:
    given: list[str] = []

    def browser(address: str) -> bool:
        given.append(address)
        return opens

    monkeypatch.setattr(webbrowser, "open_new_tab", browser)
    result = called(run, "--open")
    assert result.exit_code == 0
    assert given == [run.with_suffix(".html").resolve().as_uri()]
    assert ("no browser could be started" in result.stderr) is not opens


BROKEN: dict[str, tuple[Callable[[str], str], str]] = {
    "truncated": (lambda text: text[: len(text) // 2], "truncated or no JSON"),
    "edited": (lambda text: text.replace('"passed"', '"failed"', 1), "edited or damaged"),
    "newer": (lambda text: text.replace('"schema_version": 1', '"schema_version": 7'), "newer than 1"),
    "foreign": (lambda text: '{"a": 1}', "is no parity record"),
    "not_text": (lambda text: "\0" * 40, "truncated or no JSON"),
    "deep": (lambda text: "[" * 200_000, "truncated or no JSON"),
}


@pytest.mark.parametrize("which", ["run", "earlier"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_record_is_named_and_nothing_written(run: Path, tmp_path: Path, name: str, which: str) -> None:
    spoil, words = BROKEN[name]
    bad = tmp_path / "bad.json"
    bad.write_text(spoil(run.read_text()))
    refused(called(bad) if which == "run" else called(run, "--compare", bad), "bad.json", words)
    assert not list(tmp_path.glob("*.html"))


def test_record_that_another_program_wrote_is_named(tmp_path: Path) -> None:
    record = {**recorded("another_function"), "cases": [{"id": "x"}]}
    refused(called(write_record(tmp_path / "odd.json", record)), "odd.json.cases[0] has no 'pair'")
    refused(called(tmp_path / "gone.json"), "cannot read", "gone.json")


def test_record_is_never_written_over(run: Path) -> None:
    before = run.read_bytes()
    refused(called(run, "-o", run), "is the record itself")
    assert run.read_bytes() == before


def test_folder_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(called(run, "-o", tmp_path / "file" / "r.html"), "cannot write", "r.html")
    refused(called(run, "-o", tmp_path), "cannot write", "it is a folder")
    os.mkfifo(tmp_path / "pipe")
    refused(called(run, "-o", tmp_path / "pipe"), "cannot write", "a file would take its place")
    assert (tmp_path / "pipe").is_fifo()


def test_full_disk_leaves_the_old_report(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = run.with_suffix(".html")
    old.write_text("old")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(called(run), "No space left on device", "untouched")
    assert old.read_text() == "old"
    assert sorted(p.name for p in run.parent.iterdir()) == ["parity.html", "parity.json"]


def test_second_of_two_writers_is_refused(run: Path) -> None:
    with locked(run.with_suffix(".html")):
        refused(called(run), "is being written by process")
    assert called(run).exit_code == 0


SMALL = "PAIR = tiny_pair('small', depth=1, lora=None)"


def test_option_writes_the_report_beside_the_record(project: Project) -> None:
    project.pair("small", SMALL)
    run = project.run("-q", "--parity-html")
    assert run.code == 0
    assert run.files == ["parity.html", "parity.json"]
    assert "report     reports/parity.html" in run.text
    assert "--parity-html" not in run.record["cases"][0]["rerun"]


def test_missing_extra_stops_before_anything_is_computed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.pair("small", "note('read')\n" + SMALL)
    monkeypatch.setitem(sys.modules, "plotly", None)
    run = project.run("-q", "--parity-html")
    assert run.code == 4
    assert "plotly is not installed" in run.text
    assert not run.has_record


def test_rerun_is_in_the_record(project: Project) -> None:
    project.pair("small", SMALL)
    case = project.run("-q", "--parity-seed", "3").record["cases"][0]
    assert case["rerun"] == f'pytest "test_suite.py::test_parity[{case["id"]}]" --parity-seed=3'
