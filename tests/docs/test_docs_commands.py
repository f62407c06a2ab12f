"""Every command, option and link of the documentation works.

A fence tagged `bash` holds commands to be tested: quick ones run, long ones are checked as far as they go without the
long part. `bash no-test reason="..."` is for commands on files only a reader has.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from parity import cli
from parity.commands import run

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("*.md", "docs/**/*.md", "*/README.md", "benchmarks/**/*.md")
PAGES = sorted({p for place in PLACES for p in ROOT.glob(place) if not p.parent.name.startswith(".")})
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
OPTION = re.compile(r"--parity-[a-z-]+")


@dataclass(frozen=True)
class Fence:
    language: str
    info: str
    text: str


class _ModelsReachedError(Exception):
    """Stands in for the long part of `parity run`: everything before it was accepted."""


def fences(text: str) -> list[Fence]:
    return [Fence(language, info.strip(), body) for language, info, body in FENCE.findall(text)]


def commands(text: str) -> list[str]:
    """The commands of the tested fences: one a line, continued lines joined, comments and prompts dropped."""
    found = []
    for fence in fences(text):
        if fence.language in ("bash", "sh", "console", "shell") and not fence.info.startswith("no-test"):
            lines = fence.text.replace("\\\n", " ").splitlines()
            found += [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return found


def wrong_with(command: str) -> str | None:
    """What is wrong with a command, None where it works."""
    words = shlex.split(command, comments=True)
    check = {"make": wrong_target, "pytest": wrong_selection, "parity": wrong_call}.get(words[0])
    return f"{words[0]} is not known here: test it, or tag the fence no-test" if check is None else check(words[1:])


def wrong_target(words: list[str]) -> str | None:
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else None


def wrong_selection(words: list[str]) -> str | None:
    """Collect only; a selection that fits no test is as wrong as an unknown option.

    Cases of `-m parity` are all in one folder: importing every other test file, once a command, would take a minute.
    """
    code, said = said_by_pytest()[shlex.join(words)]
    return said[-2000:] if code else None


@cache
def said_by_pytest() -> dict[str, tuple[int, str]]:
    """Exit code and words of every documented call of pytest, and of `--help`; one process for all, torch is slow."""
    wanted = [command for command in (*DOCUMENTED, *WRONG) if command.startswith("pytest")]
    given = [shlex.split(command, comments=True)[1:] for command in wanted]
    calls = {shlex.join(words): [*COLLECT, *words, *_place(words)] for words in given} | {"--help": ["--help"]}
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN], cwd=ROOT, input=json.dumps(calls), capture_output=True, text=True, check=True
    )
    return {words: (code, said) for words, (code, said) in json.loads(done.stdout).items()}


def _place(words: list[str]) -> list[str]:
    return ["tests/suite"] if "parity" in words and not any(word.startswith("tests/") for word in words) else []


COLLECT = ["--collect-only", "-q", "-p", "no:cacheprovider"]
IN_TURN = """
import contextlib, io, json, sys
import pytest
found = {}
for words, call in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        code = int(pytest.main(call))
    found[words] = (code, said.getvalue())
print(json.dumps(found))
"""


def wrong_call(words: list[str]) -> str | None:
    """Run a command up to where models would be loaded."""
    result = CliRunner().invoke(cli.app, words)
    if isinstance(result.exception, _ModelsReachedError):
        return None
    return result.output if result.exit_code else None


@pytest.fixture(autouse=True)
def _at_the_root_without_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: object) -> None:
        raise _ModelsReachedError

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(run, "judge_cases", reached)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


TEXTS = {named(page): page.read_text(encoding="utf-8") for page in PAGES}
CASES = sorted({command: page for page, text in TEXTS.items() for command in commands(text)}.items())
DOCUMENTED = [command for command, _ in CASES]
WRONG = (
    "parity frobnicate", "parity pairs --jsn", "parity run longcta", "parity run longcat --size tyny",
    "parity run longcat -k 'block1 and'", "make no-such-target", "pytest -m parity --parity-no-such-option",
    "pytest -m parity -k no_such_case_anywhere", "frobnicate",
)  # fmt: skip


@pytest.mark.parametrize(("command", "page"), CASES, ids=DOCUMENTED)
def test_command_of_the_documentation(command: str, page: str) -> None:
    assert wrong_with(command) is None, f"{page}: {command}"


@pytest.mark.parametrize("page", TEXTS)
def test_untested_fences_say_why(page: str) -> None:
    for fence in fences(TEXTS[page]):
        if fence.info.startswith("no-test"):
            assert re.fullmatch(r'no-test reason="[^"]{8,}"', fence.info), fence.text


@pytest.mark.parametrize("page", TEXTS)
def test_python_fences_parse(page: str) -> None:
    for fence in fences(TEXTS[page]):
        if fence.language == "python":
            ast.parse(fence.text)


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    assert not [link for link in LINK.findall(TEXTS[page]) if not ((ROOT / page).parent / link).exists()]


@pytest.mark.parametrize("page", TEXTS)
def test_options_exist(page: str) -> None:
    assert set(OPTION.findall(TEXTS[page])) <= plugin_options()


@pytest.mark.parametrize("page", TEXTS)
def test_no_absolute_path_of_a_machine(page: str) -> None:
    assert not re.findall(r"(?<![\w.:/])/(?:home|root|work|tmp|Users|mnt)/\S*", TEXTS[page])


def plugin_options() -> set[str]:
    return set(OPTION.findall(said_by_pytest()["--help"][1]))


def test_readme_names_every_option() -> None:
    assert plugin_options() <= set(OPTION.findall((ROOT / "README.md").read_text(encoding="utf-8")))


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_is_found(command: str) -> None:
    page = f"# A page\n\n```bash\n# a comment\n{command}\n```\n"
    assert commands(page) == [command]
    assert wrong_with(command) is not None


def test_fences_are_read() -> None:
    page = 'text\n```bash no-test reason="yours"\nrm x\n```\n```bash\nmake \\\n  help\n```\n```text\nnothing\n```\n'
    assert [" ".join(command.split()) for command in commands(page)] == ["make help"]
    assert [fence.info for fence in fences(page)] == ['no-test reason="yours"', "", ""]
