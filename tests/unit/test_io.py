"""Files: whole or not at all, one writer, and every broken record named."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from parity.errors import RecordError, SourceMissing, WrongSource
from parity.io import records
from parity.io.atomic import locked, write_atomic
from parity.io.hashing import hash_weights
from parity.io.memory import peak_resident
from parity.io.records import read_record, write_record
from parity.io.sources import check_imported_from, describe_source


def test_write_atomic_takes_bytes_or_a_callable(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    write_atomic(path, b"one")
    write_atomic(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def half(file: BinaryIO) -> None:
    file.write(b"half")
    raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.bin", b"old")
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, half)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.bin", b"old")
    code = "import os, sys; from parity.io.atomic import write_atomic\n"
    code += "write_atomic(sys.argv[1], lambda f: (f.write(b'half'), f.flush(), os.kill(os.getpid(), 9)))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment(), check=False)
    assert done.returncode == -9
    assert path.read_bytes() == b"old"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(records.__file__).parents[2])}


def test_a_second_writer_is_told_who_holds_the_file(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "r.json"),
        pytest.raises(RecordError, match=rf"r.json is being written by process {os.getpid()} on \S+ since \d{{4}}-"),
        locked(tmp_path / "r.json"),
    ):
        pytest.fail("entered")
    with locked(tmp_path / "r.json"), locked(tmp_path / "other.json"):
        pass
    assert list(tmp_path.iterdir()) == []


HOLD = """
import os, sys
from parity.io.memory import peak_resident
from parity.io.atomic import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), 9)
"""


def test_another_process_holds_it_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment()) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RecordError, match=f"process {other.pid} on"), locked(path):
            pytest.fail("entered")
        other.stdin.write("\n")
    assert (tmp_path / ".r.json.lock").exists()  # what the killed process left
    with locked(path) as mine:
        assert json.loads((tmp_path / ".r.json.lock").read_text())["pid"] == os.getpid()
        assert mine == path


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "r.json"):
            raise ZeroDivisionError


RECORD: dict[str, Any] = {
    "numbers": [1, -0.5, math.inf, -math.inf, 1e-300],
    "nested": {"flag": True, "none": None, "text": "NaN", "odd": "\\Infinity", "unicode": "µ"},
}


def test_a_record_comes_back_and_is_strict_json(tmp_path: Path) -> None:
    path = write_record(tmp_path / "r.json", {**RECORD, "tuple": (1, 2)})
    assert read_record(path) == {**RECORD, "tuple": [1, 2]}
    strict = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    assert strict["record"]["numbers"][2:4] == ["Infinity", "-Infinity"]
    nan = read_record(write_record(path, {"x": math.nan}))["x"]
    assert isinstance(nan, float)
    assert math.isnan(nan)


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def rewrite(text: str) -> str:
        whole = json.loads(text)
        change(whole)
        return json.dumps(whole)

    return rewrite


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "truncated or no JSON"),
        (lambda text: "", "truncated or no JSON"),
        (lambda text: text.replace("1e-300", "1e-299"), "edited or damaged"),
        (rewritten(lambda whole: whole["record"].pop("nested")), "edited or damaged"),
        (rewritten(lambda whole: whole.pop("record")), "edited or damaged"),
        (rewritten(lambda whole: whole.update(schema="other")), "no parity record"),
        (lambda text: "[1, 2]", "no parity record"),
        (lambda text: "\ud800", "no parity record: it is not text"),
        (rewritten(lambda whole: whole.update(schema_version=0)), "older schema version 0"),
        (rewritten(lambda whole: whole.update(schema_version=99)), "schema version 99, newer"),
        (rewritten(lambda whole: whole.update(schema_version="1")), "a number is needed"),
    ],
)
def test_a_broken_record_is_named(change: Callable[[str], str], words: str, tmp_path: Path) -> None:
    path = write_record(tmp_path / "r.json", RECORD)
    path.write_bytes(change(path.read_text()).encode(errors="surrogatepass"))
    with pytest.raises(RecordError, match=words):
        read_record(path)


def test_a_missing_record_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(RecordError, match="cannot read"):
            read_record(path)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"a": {"b": [0, torch.ones(1)]}}, r"record.a.b\[1\] is a Tensor"),
        ({"a": {1: 2}}, "record.a has the key 1, a int"),
        ({"a": {1, 2}}, "record.a is a set"),
    ],
)
def test_what_json_cannot_hold_is_refused(record: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=words):
        write_record(tmp_path / "r.json", record)
    assert list(tmp_path.iterdir()) == []


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@e", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    package = tmp_path / "repository" / "some_ported_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text("x = 1\n")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "first")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("SOME_CHECKOUT", str(package.parent))
    yield package.parent
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]


def test_a_checkout_is_described_by_commit_and_file(checkout: Path) -> None:
    found = describe_source("some_ported_package.model", "torch", "SOME_CHECKOUT")
    assert found["commit"] == git(checkout, "rev-parse", "HEAD")
    assert found["dirty"] is False
    assert found["file"] == "some_ported_package/model.py"
    assert found["version"] is not None
    assert str(checkout) not in json.dumps(found)
    (checkout / "some_ported_package" / "model.py").write_text("x = 2\n")
    changed = describe_source("some_ported_package.model", None, "SOME_CHECKOUT")
    assert changed["dirty"] is True
    assert changed["digest"] != found["digest"]


def test_a_source_without_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    found = describe_source("torch.nn.modules.linear", "no-such-distribution", "NO_SUCH_VARIABLE")
    assert (found["version"], found["commit"], found["dirty"]) == (None, None, None)
    assert found["file"] == "torch/nn/modules/linear.py"
    assert describe_source("torch.nn")["file"] == "torch/nn/__init__.py"


def test_a_missing_source_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_such_module", "torch.no_such_module", "no_such_module.inner"):
        with pytest.raises(SourceMissing, match=name):
            describe_source(name)
    monkeypatch.setenv("SOME_CHECKOUT", "/no/such/folder")
    with pytest.raises(SourceMissing, match="SOME_CHECKOUT is set to '/no/such/folder'"):
        describe_source("torch", None, "SOME_CHECKOUT")


def test_an_import_from_elsewhere_is_an_error(checkout: Path) -> None:
    assert check_imported_from("some_ported_package.model", checkout).name == "model.py"
    assert check_imported_from(torch, Path(torch.__file__).parent).name == "__init__.py"
    with pytest.raises(WrongSource, match=r"torch was imported from .*\nexpected below"):
        check_imported_from(torch, checkout)


def test_the_hash_of_weights_is_of_values_and_keys() -> None:
    x = torch.randn(64, 48)
    state = {"a": x, "b": torch.tensor(1.5), "c": torch.zeros(3, dtype=torch.bfloat16), "d": torch.ones(0)}
    same = {"d": torch.ones(0), "c": state["c"].clone(), "b": state["b"], "a": x.t().contiguous().t()}
    assert hash_weights(state) == hash_weights(same)
    nudged = x.clone()
    nudged[63, 47] = nudged[63, 47].nextafter(torch.tensor(9.0))
    others: list[dict[str, torch.Tensor]] = [
        {**state, "a": nudged}, {**state, "a": x.view(48, 64)}, {**state, "a": x.double()},
        {**state, "a": x.t()}, {**state, "e": state["b"]}, {"z": x, **{k: v for k, v in state.items() if k != "a"}},
        {**state, "b": torch.tensor(-1.5)}, {**state, "c": torch.zeros(3, dtype=torch.float16)},
    ]  # fmt: skip
    assert len({hash_weights(state), *map(hash_weights, others)}) == len(others) + 1


def test_the_hash_is_chunked_alike_for_any_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(10, 6, 7)
    whole = hash_weights({"x": x})
    monkeypatch.setattr("parity.io.hashing._CHUNK", 8)
    assert hash_weights({"x": x}) == whole
    assert hash_weights({"x": x.permute(2, 1, 0).contiguous().permute(2, 1, 0)}) == whole


HELD = "from parity.io.memory import peak_resident; print(peak_resident())"


def test_the_peak_of_a_process_is_not_that_of_its_parent() -> None:
    held = torch.ones(400 << 18)  # 400 MB here, at the moment the other is started
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True, env=environment())
    assert 0 < int(done.stdout) < held.nbytes
    assert peak_resident() > held.nbytes
