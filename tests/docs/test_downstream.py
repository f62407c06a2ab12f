"""A repository of a port author: the installed package alone, the example's own commands, a planted bug."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from parity.io.records import read_record

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "downstream"


@dataclass
class Installed:
    """An environment that has the wheel, and the libraries of this one, but not this checkout."""

    wheel: Path
    bin: Path

    def run(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        env = {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}
        ours = words[0] != "pytest"  # pytest's own script starts another Python
        command = [str(self.bin / words[0]), *words[1:]] if ours else [str(self.bin / "python"), "-m", *words]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the wheel and install it into a fresh environment, without a network."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-index", "--no-deps", str(wheel)], check=True)
    # A plain path: the .pth files in it, this checkout's editable install among them, are not read.
    found = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (Path(found.stdout.strip()) / "libraries.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    return Installed(wheel, python.parent)


@pytest.fixture
def downstream(tmp_path: Path) -> Path:
    """A copy of the example, outside this checkout."""
    left_out = shutil.ignore_patterns("__pycache__", "reports")
    return Path(shutil.copytree(EXAMPLE, tmp_path / "downstream", ignore=left_out))


def test_the_wheel_holds_the_package_and_nothing_else(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"parity"}
    held = {f.relative_to(ROOT).as_posix() for f in (ROOT / "parity").rglob("*") if f.is_file()}
    assert {name for name in held if "__pycache__" not in name} <= set(names)


def test_the_commands_of_its_readme_run_on_the_installed_package(installed: Installed, downstream: Path) -> None:
    where = "import parity, importlib.util as u; print(parity.__file__, u.find_spec('fixtures'))"
    found = installed.run(downstream, "python", "-c", where).stdout.split()
    assert Path(found[0]).is_relative_to(installed.bin.parent)
    assert found[1] == "None"
    pair = downstream / "tests" / "pairs" / "example.py"
    before = pair.read_text(encoding="utf-8")
    text = (downstream / "README.md").read_text(encoding="utf-8")
    (fence,) = re.findall(r"^```bash[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for line in fence.splitlines()]
    assert [words[:2] for words in commands] == [["parity", "new"], ["parity", "run"], ["pytest", "-q"]]
    for words in commands:
        done = installed.run(downstream, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert pair.read_text(encoding="utf-8") == before
    cases = read_record(downstream / "reports" / "parity.json")["cases"]
    assert {case["outcome"] for case in cases} == {"passed"}
    assert len(cases) == 25


def test_a_planted_bug_fails_where_it_is(installed: Installed, downstream: Path) -> None:
    model = downstream / "port" / "model.py"
    text = model.read_text(encoding="utf-8")
    assert text.count('(self.norm3(hidden_states)), approximate="tanh")') == 1
    model.write_text(text.replace('(self.norm3(hidden_states)), approximate="tanh")', "(self.norm3(hidden_states)))"))
    done = installed.run(downstream, "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 1, done.stdout + done.stderr
    cases = read_record(downstream / "reports" / "parity.json")["cases"]
    failed = {case["tap"] for case in cases if case["outcome"] == "failed"}
    assert failed == {"block0.ffn", "block1.ffn"}
