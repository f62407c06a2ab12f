"""`parity new` from outside: the file it writes, what it says, and what it refuses."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from parity.cli import app

HERE = __name__
Cli = Callable[..., Result]
TINY = (
    "--reference", "fixtures.tiny:Reference", "--reference-config", '{"depth": 2, "width": 16}',
    "--native", "fixtures.tiny:Native", "--native-config", '{"depth": 2, "width": 16}',
)  # fmt: skip


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Cli:
    """Call a command in a project of its own."""
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nparity_pairs = ["tests/pairs"]\n')
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, list(words))


def test_the_file_runs_at_once_where_nothing_is_open(cli: Cli, tmp_path: Path) -> None:
    result = cli("new", "fresh", *TINY)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "tests/pairs/fresh.py"
    assert "16 of 16 agree" in result.stdout
    run = cli("run", "fresh", "--device", "cpu", "--json")
    assert run.exit_code == 0, run.output
    assert {case["outcome"] for case in json.loads(run.stdout)["cases"]} == {"passed"}


def test_the_file_is_clean_and_imports_public_names_only(cli: Cli, tmp_path: Path) -> None:
    assert cli("new", "fresh", *TINY).exit_code == 0
    assert cli("new", "buggy", *TINY[:4], "--native", f"{HERE}:Blank").exit_code == 0
    for name in ("fresh", "buggy"):
        file = tmp_path / "tests" / "pairs" / f"{name}.py"
        ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "120"]
        rules = ["--select", "E,F,W,I,D,UP,B", "--config", "lint.pydocstyle.convention='google'"]
        done = subprocess.run([*ruff, *rules, str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        imported = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom)]
        assert all(not alias.name.startswith("_") for node in imported for alias in node.names)


class Blank(nn.Module):
    """A native whose forward names nothing that could be guessed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.unlike = nn.Linear(16, 32), nn.Linear(3, 7)

    def forward(self, alpha: Tensor, beta: int) -> Tensor:
        out: Tensor = self.fc1(alpha) * beta
        return out


def test_what_nothing_says_is_a_blank_and_the_run_says_what_to_fill_in(cli: Cli, tmp_path: Path) -> None:
    result = cli("new", "open", *TINY[:4], "--native", f"{HERE}:Blank")
    assert result.exit_code == 0, result.output
    assert "not run: the " in result.stdout
    text = (tmp_path / "tests" / "pairs" / "open.py").read_text()
    assert 'raise UsageError("TODO(pair): say in _call_native what the native gets for alpha, beta")' in text
    assert "#   unlike.(weight|bias) (7, 3), (7,)" in text
    assert 'native_only(r"unlike\\.(weight|bias)", "why"),' in text
    assert cli("pairs").exit_code == 0
    run = cli("run", "open", "--device", "cpu")
    assert run.exit_code == 1
    assert "reference keys no rule matches" in run.stderr


def test_missing_inputs_are_said_where_they_are_missing(cli: Cli, tmp_path: Path) -> None:
    result = cli("new", "inputs", "--reference", f"{HERE}:Doubling", "--native", f"{HERE}:Adding")
    assert result.exit_code == 0, result.output
    file = tmp_path / "tests" / "pairs" / "inputs.py"
    run = cli("run", "inputs", "--device", "cpu")
    assert run.exit_code == 2, run.output
    assert "TODO(pair): fill in _inputs of the pair inputs" in run.stderr
    filled = {
        "fill in _inputs": "    return {'q': torch.randn(2, 64, 6, generator=torch.Generator().manual_seed(seed))}",
        "say in _call_": "    return model(inputs['q'].to(model.fc1.weight.dtype))",
    }
    lines = file.read_text().replace("from torch import nn", "import torch\nfrom torch import nn").splitlines()
    forget(file)
    file.write_text("\n".join(next((new for old, new in filled.items() if old in line), line) for line in lines))
    done = cli("run", "inputs", "--device", "cpu")
    assert done.exit_code == 0, done.output


def forget(file: Path) -> None:
    """Let a pair file be imported again in this process."""
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(file)]:
        del sys.modules[name]


class Doubling(nn.Module):
    """An original whose argument says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 6)

    def forward(self, q: Tensor) -> Tensor:
        out: Tensor = self.fc1(q) * 2
        return out


class Adding(nn.Module):
    """Its port."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 6)

    def forward(self, q: Tensor) -> Tensor:
        h = self.fc1(q)
        return torch.add(h, h)


def test_it_prints_the_file_or_facts(cli: Cli, tmp_path: Path) -> None:
    printed = cli("new", "fresh", *TINY, "-o", "-")
    assert printed.stdout.startswith('"""The pair `fresh`.')
    assert not (tmp_path / "tests").exists()
    facts: dict[str, Any] = json.loads(cli("new", "fresh", *TINY, "--json").stdout)
    assert (facts["file"], facts["blanks"], facts["not_run"]) == ("tests/pairs/fresh.py", 0, None)
    assert facts["reference_blank"] == facts["native_blank"] == []
    assert len(facts["taps"]) == 16


def test_a_file_that_is_there_is_kept(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "tests" / "pairs" / "fresh.py"
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    assert "pass --force to replace it" in cli("new", "fresh", *TINY).stderr
    assert file.read_text() == "mine"
    assert cli("new", "fresh", *TINY, "--force").exit_code == 0
    assert file.read_text() != "mine"


REFERENCE = ("--reference", "fixtures.tiny:Reference", "--reference-config", '{"depth": 2, "width": 16}')
NATIVE = ("--native", "fixtures.tiny:Native", "--native-config", '{"depth": 2, "width": 16}')


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("My-Port", *TINY), 2, "is not lower case with underscores"),
        (("p", *NATIVE, "--reference", "fixtures.tiny:Referenc"), 2, "did you mean 'Reference'?"),
        (("p", *NATIVE, "--reference", "fixtures.tiny"), 2, "valid: package.module:name"),
        (("p", *NATIVE, "--reference", "fixtures.tinny:Reference"), 2, "fixtures.tinny does not import"),
        (("p", *NATIVE, "--reference", "fixtures.tiny:Reference"), 1, "--reference-config"),
        (("p", *NATIVE, "--reference", "fixtures.tiny:TEXT"), 1, "does not build"),
        (("p", *NATIVE, "--reference", "builtins:dict"), 1, "gives a dict, not a torch module"),
        (("p", *NATIVE, "--reference", "fixtures.tiny:Native", "--reference-config", '{"depth": 2, "width": 16}'), 2,
         "a model compared with itself always agrees"),
        (("p", *NATIVE, *REFERENCE[:2], "--reference-config", "depth=2"), 2, "--reference-config is no JSON"),
        (("p", *NATIVE, *REFERENCE[:2], "--reference-config", "[2]"), 2, "valid: a JSON object"),
        (("p", *NATIVE, *REFERENCE[:2], "--reference-config", '{"depth": 3, "width": 16}'), 2,
         "the reference has 3 blocks (layers), the native 2 (blocks)"),
        (("p", *TINY, "--mapping", f"{HERE}:HERE"), 2, "a dict from pattern to name"),
        (("p", *TINY, "--converter", f"{HERE}:HERE"), 2, "a function from state dict to state dict"),
        (("p", *TINY, "--converter", f"{HERE}:cli", "--mapping", f"{HERE}:HERE"), 2, "not from both"),
        (("p", *TINY, "--inputs", f"{HERE}:no_inputs"), 2, "valid: a dict from name to tensor or value"),
        (("p", *TINY, "--inputs", f"{HERE}:raising_inputs"), 2, "raised ValueError: no latents"),
        (("p", "--native", "fixtures.tiny:Native"), 2, "Missing option '--reference'"),
    ],
)  # fmt: skip
def test_what_it_refuses(cli: Cli, words: tuple[str, ...], code: int, said: str) -> None:
    result = cli("new", *words)
    assert result.exit_code == code, result.output
    assert said in " ".join(result.stderr.split())
    assert len(result.stderr.strip().splitlines()) <= 5


def no_inputs() -> list[int]:
    return [1]


def raising_inputs(seed: int) -> None:
    raise ValueError("no latents")
