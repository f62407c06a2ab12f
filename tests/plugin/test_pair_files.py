"""Pair files that cannot be used: each a usage error of a few lines, never a traceback."""

from __future__ import annotations

import pytest

from fixtures.project import Project

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
