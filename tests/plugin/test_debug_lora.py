"""`parity debug-lora`: four comparisons that say where the problem is, and interpreters that do not work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fixtures.project import ROOT, Project
from parity.cli import app
from parity.errors import ParityError, UsageError
from parity.propagation import Interpreter

HEALTHY = "PAIR = tiny_pair('small', depth=1)"
PAIRS = {
    "healthy": HEALTHY,
    "ignored": (
        "from contextlib import nullcontext\np = tiny_pair('small', depth=1)\n"
        "PAIR = replace(p, native=replace(p.native, apply_lora=lambda model, adapter: nullcontext()))"
    ),
    "alpha_dropped": (
        "from parity.lora.adapter import LoraAdapter\nfrom parity.lora.apply import applied\n"
        "p = tiny_pair('small', depth=1)\n"
        "def put(model, adapter):\n"
        "    targets = {k: replace(t, scaling=1.0) for k, t in adapter.targets.items()}\n"
        "    return applied(model, LoraAdapter(adapter.name, targets))\n"
        "PAIR = replace(p, native=replace(p.native, apply_lora=put))"
    ),
    "base_differs": "PAIR = edited(tiny_pair('small', depth=1), output_of('blocks.0.gelu', lambda y: y * 1.5))",
    "coarser": "PAIR = edited(tiny_pair('small', depth=1), output_of('sinusoid', lambda y: y.bfloat16()))",
}
DebugLora = Callable[..., Result]


@pytest.fixture
def debug_lora(project: Project, monkeypatch: pytest.MonkeyPatch) -> DebugLora:
    """Return a function that calls the command on a pair; the interpreters are this process."""
    monkeypatch.chdir(project.pytester.path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(pair: str, *words: str) -> Result:
        project.pair("small", pair)
        for name in [name for name in sys.modules if name == "pairs" or name.startswith(("pairs.", "parity_pair_"))]:
            del sys.modules[name]
        fixed = ["--pairs", "pairs", "--device", "cpu", "-o", "stages"]
        return CliRunner().invoke(app, ["debug-lora", "small", *fixed, *words])

    return call


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let `Interpreter` call the commands here, as a process would; returns the interpreters that were asked."""
    asked: list[str] = []

    def run(self: Interpreter, *arguments: str) -> dict[str, Any]:
        asked.append(f"{self.python} {arguments[0]}")
        return run_here(self, *arguments)

    monkeypatch.setattr(Interpreter, "run", run)
    return asked


def run_here(interpreter: Interpreter, *arguments: str) -> dict[str, Any]:
    folders = [word for folder in interpreter.pairs for word in ("--pairs", str(folder))]
    done = CliRunner().invoke(app, [*arguments, *folders])
    return interpreter.answer_of(done.exit_code, done.stdout, done.stderr, arguments[0])


@pytest.mark.parametrize(
    ("pair", "code", "conclusion"),
    [
        ("healthy", 0, "parity: base and LoRA agree, and the LoRA does the same to both"),
        ("ignored", 1, "the LoRA is not applied to the native, or to few of its layers"),
        ("alpha_dropped", 1, "the base models agree and the LoRA states differ: the LoRA is applied differently"),
        ("base_differs", 1, "the base models differ: a conversion problem"),
    ],
)
def test_the_conclusion_names_where_the_problem_is(
    debug_lora: DebugLora, in_this_process: list[str], pair: str, code: int, conclusion: str
) -> None:
    result = debug_lora(PAIRS[pair], "--reference-python", "old", "--native-python", "new")
    assert result.exit_code == code, result.output
    assert f"=> {conclusion}" in result.stdout
    assert [line[:3] for line in result.stdout.splitlines() if line.startswith("[")] == ["[1]", "[2]", "[3]", "[4]"]
    assert in_this_process[:2] == ["old record", "new record"]
    assert "differs first at" in result.stdout or pair in ("healthy", "ignored")


def test_the_numbers_of_the_four_are_json(debug_lora: DebugLora, in_this_process: list[str]) -> None:
    found = json.loads(debug_lora(PAIRS["alpha_dropped"], "--json").stdout)
    assert found["ratio"] == pytest.approx(2.0, rel=0.2)
    assert found["alignment"] > 0.95
    assert [row["tap"] for row in found["base"]][-1] == "final_output"
    assert found["base"][-1]["rel_l2"] == 0
    assert found["on_reference"][-1]["mse"] > 0
    assert found["states"]["lora_off"]["failed"] == []
    assert found["states"]["lora_on"]["failed"] == ["block0.up"]


def test_the_reference_is_recorded_again_for_a_coarser_native(
    debug_lora: DebugLora, in_this_process: list[str]
) -> None:
    result = debug_lora(PAIRS["coarser"], "--reference-python", "old", "--native-python", "new")
    assert result.exit_code == 0, result.output
    assert "taps: 9 passed, 1 warned" in result.stdout, "less precise at the sinusoid, and drowned in what follows"
    assert in_this_process[:4] == ["old record", "new record", "old record", "new record"]
    assert "old impact" in in_this_process


def test_what_was_mended_since_shows(debug_lora: DebugLora, in_this_process: list[str]) -> None:
    assert debug_lora(PAIRS["alpha_dropped"]).exit_code == 1
    assert debug_lora(HEALTHY).exit_code == 0
    assert debug_lora(PAIRS["ignored"]).exit_code == 1


def test_a_pair_without_lora_is_refused(debug_lora: DebugLora) -> None:
    result = debug_lora("PAIR = tiny_pair('small', depth=1, lora=None)")
    assert result.exit_code == 2
    assert "has no LoRA" in result.stderr


def test_a_stage_that_fails_says_what_the_stage_said(debug_lora: DebugLora, in_this_process: list[str]) -> None:
    result = debug_lora("PAIR = edited(tiny_pair('small', depth=1), lambda model: 1 / 0, side='reference')")
    assert result.exit_code == 1
    assert "`parity record` failed in" in result.stderr
    assert "ZeroDivisionError" in result.stderr
    assert "Traceback" not in result.output


# --- interpreters -----------------------------------------------------------------------------------------------------


def script(folder: Path, text: str) -> str:
    """Write a program that stands for an interpreter."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("import os; os.kill(os.getpid(), 11)", ParityError, "was ended by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", ParityError, "was ended by SIGKILL"),
        ("print('{\"recording\": ')", ParityError, "said nothing that can be read: '{\"recording\":'"),
        ("print('[1]')", ParityError, "said nothing that can be read"),
        ("import sys; sys.exit(3)", ParityError, "exit code 3, and nothing said"),
        ("import sys; sys.exit('\\x1b[2Jno such checkpoint')", ParityError, "no such checkpoint"),
        ("import sys; sys.exit('/usr/bin/python: No module named parity')", UsageError, "pip install dit-parity"),
        ("import sys; sys.exit('/usr/bin/python: No module named parity.__main__; x')", UsageError, "pip install"),
        ("import sys; sys.exit(\"ImportError: No module named 'torch'\")", ParityError, "No module named 'torch'"),
        ("import sys; sys.exit(\"    x: int | None\\nSyntaxError: invalid syntax\")", UsageError, "is too old"),
        ("import sys; sys.exit(\"Error: No such command 'impact'.\")", UsageError, "older parity"),
    ],
)  # fmt: skip
def test_an_interpreter_that_does_not_work_is_told(
    text: str, kind: type[ParityError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        Interpreter(script(tmp_path, text)).run("impact", "small")
    message = str(caught.value)
    assert said in message
    assert "\x1b" not in message
    assert len(message.splitlines()) <= 5
    assert isinstance(caught.value, UsageError) is (kind is UsageError)


@pytest.mark.parametrize("python", ["no/such/python", "{folder}", "{folder}/plain.txt"])
def test_an_interpreter_that_cannot_be_run_is_told(python: str, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").touch()
    with pytest.raises(UsageError, match="cannot be run"):
        Interpreter(python.format(folder=tmp_path)).run("record", "small")


def test_words_around_the_json_do_no_harm(tmp_path: Path) -> None:
    text = "print('loading checkpoint shards'); print('{\"impacts\": [1.5]}')"
    assert Interpreter(script(tmp_path, text)).run("impact", "small") == {"impacts": [1.5]}


def test_a_missing_interpreter_is_a_usage_error_of_the_command(debug_lora: DebugLora) -> None:
    result = debug_lora(HEALTHY, "--reference-python", "no/such/python")
    assert result.exit_code == 2
    assert "the interpreter 'no/such/python' cannot be run: No such file or directory" in result.stderr


def test_both_stages_run_in_processes_of_their_own(debug_lora: DebugLora, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question too; further ones go the same way, and are asked here."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    apart, started = Interpreter.run, list[str]()

    def run(self: Interpreter, *arguments: str) -> dict[str, Any]:
        if arguments[0] in ("values", "repair"):
            return run_here(self, *arguments)
        started.append(arguments[0])
        return apart(self, *arguments)

    monkeypatch.setattr(Interpreter, "run", run)
    result = debug_lora(PAIRS["alpha_dropped"], "--json")
    assert result.exit_code == 1, result.output
    states = json.loads(result.stdout)["states"]
    assert (states["lora_off"]["failed"], states["lora_on"]["failed"]) == ([], ["block0.up"])
    assert started == ["record", "record", "impact"]
