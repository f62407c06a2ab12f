"""The command line: exit codes, words, JSON, colour."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from parity.cli import app
from parity.commands.frame import pair_files
from parity.doctor import Check, disk_checks, environment_checks, render_checks, worst, writable_check
from parity.environment import describe_environment
from parity.errors import UsageError
from parity.io.records import read_record
from parity.selection import compile_expression

ROOT = Path(__file__).resolve().parents[2]
PAIR_FILES = {
    "healthy": "PAIR = tiny_pair('healthy')",
    "faulty": "PAIR = edited(tiny_pair('faulty'), gelu_erf)",
    "raising": (
        "def die(y):\n    raise RuntimeError('no kernel')\n"
        "PAIR = edited(tiny_pair('raising'), output_of('head', die))"
    ),
    "plain": "PAIR = tiny_pair('plain', lora=None)",
    "absent": (
        "p = tiny_pair('absent')\n"
        "def build(wanted):\n    raise SourceMissing('elsewhere is not here\\nget it with: fetch elsewhere')\n"
        "s = Source('elsewhere.model', folder='nowhere', get='fetch elsewhere')\n"
        "PAIR = replace(p, reference=replace(p.reference, source=s, build=build))"
    ),
}
HEAD = """
from dataclasses import replace
from fixtures.tiny import edited, gelu_erf, output_of, tiny_pair
from parity.errors import SourceMissing
from parity.pair import Source
"""
Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Call a command in a project of its own, whose pytest configuration names its pairs."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name, text in PAIR_FILES.items():
        (folder / f"{name}.py").write_text(HEAD + text, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nparity_pairs = ["pairs"]\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, list(words))


def data(result: Result) -> Any:
    return json.loads(result.stdout)


def test_parity_exits_0_and_writes_the_record(cli: Cli, tmp_path: Path) -> None:
    result = cli("run", "healthy", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "healthy lora_off" in result.stdout
    assert "healthy lora_on" in result.stdout
    assert (tmp_path / "reports" / "parity.json").is_file()


def test_a_run_is_written_as_a_page_where_it_is_asked_for(cli: Cli, tmp_path: Path) -> None:
    result = cli("run", "faulty", "--lora", "off", "-k", "act", "--html")
    assert result.stdout.endswith("report: reports/parity.html\n")
    assert "faulty-block1-act-lora_off" in (tmp_path / "reports" / "parity.html").read_text(encoding="utf-8")
    (tmp_path / "reports" / "parity.html").unlink()
    (tmp_path / "reports" / "parity.html").mkdir()
    refused = cli("run", "plain", "--html")
    assert (refused.exit_code, read_record("reports/parity.json")["complete"]) == (2, True)
    assert "parity.html" in refused.stderr


def test_a_difference_exits_1_and_says_how_to_rerun(cli: Cli) -> None:
    result = cli("run", "faulty", "--lora", "off", "--seed", "3")
    assert result.exit_code == 1
    assert 'rerun: parity run faulty --seed 3 -k "faulty-block1-act-lora_off"' in result.stdout


def test_an_error_of_a_model_exits_1(cli: Cli) -> None:
    result = cli("run", "raising")
    assert result.exit_code == 1
    record = read_record("reports/parity.json")
    assert record["summary"]["outcomes"]["error"] == record["summary"]["cases"] == 30
    assert [case["tap"] for case in record["cases"]][:2] == ["patch_embed", "sinusoid"]
    assert "30 cases could not be run (lora_off, lora_on): the native raised" in result.stdout
    assert "no kernel" in result.stderr
    assert "no case was judged: this run proves nothing" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "healthi"], "did you mean 'healthy'?"),
        (["run", "healthy", "--size", "tyny"], "did you mean 'tiny'?"),
        (["run", "healthy", "--dtype", "bfloat61"], "did you mean 'bfloat16'?"),
        (["run", "healthy", "--lora", "of"], "did you mean 'off'?"),
        (["run", "healthy", "--device", "cudda"], "did you mean 'cuda'?"),
        (["run", "healthy", "--device", "cuda:99"], "there is no device 'cuda:99'"),
        (["run", "healthy", "-k", "block9"], "no case fits -k 'block9'"),
        (["run", "healthy", "-k", "block1 and"], "ends too early"),
        (["run", "healthy", "--draws", "0"], "--draws"),
        (["run", "plain", "--lora", "on"], "the pair 'plain' has no LoRA"),
        (["run", "absent"], "get it with: fetch elsewhere"),
        (["run"], "Missing argument"),
        (["runn", "healthy"], "Did you mean 'run'?"),
        (["pairs", "--pairs", "nowhere"], "there is no pair folder 'nowhere'"),
    ],
)
def test_usage_errors_exit_2_and_say_what_is_valid(cli: Cli, words: list[str], said: str) -> None:
    result = cli(*words)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 5


def test_errors_are_json_where_json_is_asked_for(cli: Cli) -> None:
    result = cli("run", "healthi", "--json")
    assert (result.exit_code, data(result)["error"], data(result)["exit_code"]) == (2, "UsageError", 2)


def test_run_prints_the_record_as_json(cli: Cli) -> None:
    record = data(cli("run", "healthy", "--lora", "off", "-k", "block1 and not up", "--json"))
    assert record["schema"].startswith("parity-record/")
    assert [case["tap"] for case in record["cases"]] == ["block1.norm", "block1.act", "block1.down", "block1"]


def test_pairs_lists_what_is_missing_with_its_command(cli: Cli) -> None:
    listed = {pair["pair"]: pair for pair in data(cli("pairs", "--json"))["pairs"]}
    assert set(listed) == set(PAIR_FILES)
    assert listed["absent"]["missing"] == {"reference": "fetch elsewhere"}
    assert (listed["healthy"]["available"], listed["healthy"]["taps"]) == (True, 15)
    assert (listed["healthy"]["lora"], listed["plain"]["lora"]) == (True, False)
    assert "reference is missing, get it with: fetch elsewhere" in cli("pairs").stdout


def test_doctor_names_a_missing_source_and_how_to_get_it(cli: Cli) -> None:
    result = cli("doctor", "--json")
    checks = {check["name"]: check for check in data(result)["checks"]}
    assert result.exit_code == int(data(result)["worst"] == "error")
    assert checks["pair absent"]["mend"] == "fetch elsewhere"
    assert checks["pair healthy"]["status"] == "ok"
    assert {"python", "torch", "gpu", "attention", "tf32", "bf16 matmul", "disk"} <= set(checks)


def test_doctor_reports_a_broken_pair_file_and_goes_on(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pairs" / "broken.py").write_text("import nowhere_at_all", encoding="utf-8")
    result = cli("doctor", "--json")
    assert result.exit_code == 1
    assert "broken.py does not import" in next(c["found"] for c in data(result)["checks"] if c["name"] == "pairs")


def test_doctor_warns_of_tf32_and_a_full_disk() -> None:
    environment = describe_environment()
    switches = {**environment["switches"], "float32_matmul_precision": "high"}
    checks = list(environment_checks({**environment, "switches": switches}))
    assert next(check for check in checks if check.name == "tf32").status == "warning"
    assert [next(disk_checks(free)).status for free in (1e7, 1e9, 1e10)] == ["error", "warning", "ok"]
    assert worst([Check("a", "ok", ""), Check("b", "warning", "")]) == "warning"
    assert "mend: do this" in render_checks([Check("b", "warning", "bad", "do this")])


def test_pairs_of_an_ini_file_are_found(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").unlink()
    assert cli("pairs").exit_code == 2
    (tmp_path / "pytest.ini").write_text("[pytest]\nparity_pairs = pairs\n", encoding="utf-8")
    assert len(data(cli("pairs", "--json"))["pairs"]) == len(PAIR_FILES)


def leaves(command: Any, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every command and group a person can call, by its words."""
    found = [(words, command)]
    for name, inner in getattr(command, "commands", {}).items():
        found += [] if inner.hidden else leaves(inner, (*words, name))
    return found


COMMANDS = dict(leaves(typer.main.get_command(app)))
GROUPS = {words for words, command in COMMANDS.items() if hasattr(command, "commands")}


def test_the_commands_there_are() -> None:
    assert {words[0] for words in COMMANDS if words} >= {
        "run", "compare", "record", "debug-lora", "new", "pairs", "doctor", "summary", "baseline", "lora", "weights",
    }  # fmt: skip
    assert {("baseline", name) for name in ("accept", "show", "check")} <= set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_a_first_line_and_examples_that_parse(cli: Cli, words: tuple[str, ...]) -> None:
    result = cli(*words, "--help")
    assert result.exit_code == 0
    assert "..." not in COMMANDS[words].get_short_help_str(60 if words else 100), "cut off where its group lists it"
    shown = result.stdout.partition("Examples:")[2]
    given = [line.strip() for line in shown.splitlines() if line.strip().startswith("parity ")]
    assert given
    assert shlex.split(given[0])[1 : 1 + len(words)] == list(words)
    for example in given:
        parse(shlex.split(example)[1:])


def parse(words: list[str]) -> None:
    """Parse a command line without running it; an unknown option or a missing argument raises."""
    command = COMMANDS[()]
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    command.make_context("parity", words)


@pytest.mark.parametrize("words", [words for words in COMMANDS if words not in GROUPS], ids=" ".join)
def test_every_command_has_json(words: tuple[str, ...]) -> None:
    assert any("--json" in option.opts for option in COMMANDS[words].params)


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")])
def test_a_shell_can_complete(cli: Cli, monkeypatch: pytest.MonkeyPatch, shell: str, word: str) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    shown = CliRunner().invoke(app, ["--show-completion", shell], prog_name="parity")
    assert shown.exit_code == 0
    assert word in shown.stdout
    assert "parity" in shown.stdout


def test_pairs_are_completed_without_importing_them(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pairs" / "hearsay.py").write_text("raise SystemExit", encoding="utf-8")
    assert pair_files("hea") == ["healthy", "hearsay"]


def test_doctor_names_an_environment_in_one_word(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    word = cli("doctor", "--key").stdout.strip()
    assert re.fullmatch(r"[A-Za-z0-9.-]+", word)
    assert data(cli("doctor", "--key", "--json"))["key"] == word
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert cli("doctor", "--key").stdout.strip() != word
    checks = {check["name"]: check for check in data(cli("doctor", "--json"))["checks"]}
    assert checks["tf32 override"]["mend"] == "unset NVIDIA_TF32_OVERRIDE"


def test_doctor_keeps_the_width_but_for_what_is_to_be_copied() -> None:
    shown = render_checks([Check("a", "warning", "words " * 30, "x" * 90)], 60).splitlines()
    assert all(len(line) <= 60 for line in shown[:-1])
    assert shown[-1].endswith("x" * 90)


def test_doctor_sees_where_no_record_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = [writable_check(tmp_path / "file" / "reports"), writable_check(tmp_path / "reports")]
    assert [check.status for check in found] == ["error", "ok"]


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("dit-parity ")


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ("block07", True), ("BLOCK07 and ffn", False), ("block07 or ffn", True), ("not ffn", True),
        ("not (block07 or ffn)", False), ("block07 and not not lora_off", True), ("a-block07", True),
    ],
)  # fmt: skip
def test_expression(expression: str, fits: bool) -> None:
    assert compile_expression(expression)("a-block07-self_attn-lora_off") is fits


@pytest.mark.parametrize("expression", ["and", "a b", "(a", "a)", "not", "a or", "()"])
def test_malformed_expression(expression: str) -> None:
    with pytest.raises(UsageError):
        compile_expression(expression)


COMMAND = [sys.executable, "-c", "from parity.cli import main; main()", "run", "healthy", "--lora", "off"]


def test_a_pipe_gets_no_colour(cli: Cli) -> None:
    done = cli(*COMMAND[3:])
    assert "\033[" not in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(("no_color", "colored"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_colour_unless_NO_COLOR_is_set(cli: Cli, no_color: dict[str, str], colored: bool) -> None:
    master, slave = pty.openpty()
    with subprocess.Popen(COMMAND, stdout=slave, env={**_environment(), "TERM": "xterm", **no_color}):
        os.close(slave)
        shown = b"".join(iter(lambda: _read(master), b""))
    os.close(master)
    assert (b"\033[" in shown) is colored


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    return {**kept, "PYTHONPATH": str(ROOT)}


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b""
