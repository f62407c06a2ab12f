"""Pair files that cannot be used: each a usage error of a few lines, never a traceback."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fixtures.project import Project
from parity.cli import app
from parity.discover import discover

SMALL = "PAIR = tiny_pair('small', depth=1, lora=None)"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["no pair was found", "parity_pairs"]),
        ({"one": SMALL, "two": SMALL}, ["two files name the pair 'small': one.py and two.py"]),
        ({"broken": "import no_such_module"}, ["the pair file broken.py does not import: ModuleNotFoundError"]),
        ({"broken": "def ("}, ["the pair file broken.py does not import: SyntaxError"]),
        ({"broken": "raise SystemExit(3)"}, ["the pair file broken.py does not import: SystemExit: 3"]),
        ({"empty": "PAIRS = []"}, ["the pair file empty.py has no `PAIR = ModelPair(...)`", "underscore"]),
        ({"wrong": "PAIR = tiny_pair('My-Pair')"}, ["the pair name 'My-Pair' is not lower case"]),
        (
            {"twice": "PAIR = tiny_pair('p', taps=lambda build: [Tap('a', Point('out'), Point('head'))] * 2)"},
            ["two cases have the id 'p-a-lora_off'", "must be unique"],
        ),
    ],
)
def test_unusable_pair_file_is_a_usage_error(project: Project, files: dict[str, str], words: list[str]) -> None:
    for name, text in files.items():
        project.pair(name, text)
    run = project.run("-q")
    assert run.code == pytest.ExitCode.USAGE_ERROR
    assert not [word for word in words if word not in run.text]
    assert "Traceback" not in run.text
    assert len([line for line in run.text.splitlines() if line]) <= 6
    assert not run.has_record


_BROKEN = {
    "import": "import no_such_module", "syntax": "def (", "raise": "raise OSError('no\\nway')", "empty": "PAIRS = []",
}  # fmt: skip


def test_broken_files_hurt_only_their_own_pairs(project: Project) -> None:
    project.pair("small", SMALL)
    for name, text in _BROKEN.items():
        project.pair(f"broken_{name}", text)
    with pytest.warns(UserWarning, match="the pair file broken_") as warned:
        assert project.run("-q", "--parity-pair", "small", "-k", "final_output").code == 0
    told = [text for one in warned if "mend the file" in (text := str(one.message))]
    assert sorted(text.split()[3] for text in told) == sorted(f"broken_{name}.py" for name in _BROKEN)
    unknown = project.run("-q", "--parity-pair", "smal")
    assert unknown.code == pytest.ExitCode.USAGE_ERROR
    assert "did you mean 'small'" in unknown.text
    assert "the pair file broken_" in unknown.text
    own = project.run("-q", "--parity-pair", "broken_syntax")
    assert own.code == pytest.ExitCode.USAGE_ERROR
    assert "the pair file broken_syntax.py does not import: SyntaxError" in own.text


def test_a_command_warns_of_a_broken_file(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.pair("small", SMALL)
    project.pair("broken", "def (")
    monkeypatch.chdir(project.pytester.path)
    asked = CliRunner().invoke(app, ["run", "small", "-k", "final_output", "--json"])
    assert asked.exit_code == 0
    assert json.loads(asked.stdout)["summary"]["cases"] == 1
    assert "parity: warning: the pair file broken.py does not import: SyntaxError" in asked.stderr
    for words in (["run", "broken"], ["run", "other"], ["pairs"]):
        assert CliRunner().invoke(app, words).exit_code == 2, words


def test_files_with_an_underscore_are_no_pairs(project: Project) -> None:
    project.pair("_shared", "raise RuntimeError")
    project.pair("small", SMALL)
    assert project.run("-q").code == 0


def test_other_tests_run_without_any_pair(project: Project) -> None:
    project.suite = "def test_other(): pass"
    project.pair("broken", "import no_such_module")
    assert project.run("-q").result.parseoutcomes() == {"passed": 1}


def test_same_named_files_in_two_folders_are_two_pairs(project: Project) -> None:
    project.pair("model", "PAIR = tiny_pair('one', depth=1, lora=None)")
    folder = project.pytester.mkdir("more")
    (folder / "model.py").write_text("from fixtures.tiny import tiny_pair\nPAIR = tiny_pair('two', depth=1, lora=None)")
    run = project.run("--collect-only", "-q", "--parity-pairs", "pairs", "--parity-pairs", "more")
    assert {id.partition("-")[0] for id in run.ids} == {"one", "two"}


@pytest.mark.parametrize("importable", [False, True])
def test_a_file_edited_twice_in_a_second_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, importable: bool
) -> None:
    """Python takes compiled code for current where time and size of its source are the same."""
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    if importable:
        monkeypatch.syspath_prepend(str(tmp_path.parent))
    file = tmp_path / "small.py"
    for name in ("small", "other"):
        monkeypatch.delitem(sys.modules, f"{tmp_path.name}.small", raising=False)
        file.write_text(f"from fixtures.tiny import tiny_pair\nPAIR = tiny_pair('{name}')\n", encoding="utf-8")
        os.utime(file, (10**9, 10**9))
        assert list(discover([file])) == [name]
