"""`parity weights match` and `map` from outside: reports, interruption, scenarios, bad input."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from fixtures.checkpoints import fastvideo_like, longcat_like, noisy
from parity.cli import app
from parity.commands.weights import gathering
from parity.commands.weights.progress import Progress
from parity.weights.matching.matcher import Matcher


def saved(folder: Path, noise: float = 0.0) -> list[str]:
    reference = longcat_like(2)
    right = fastvideo_like(reference)
    native = {key: noisy(value, noise) if noise else value.contiguous() for key, value in right.items()}
    save_file(reference, folder / "a.safetensors")
    save_file(native, folder / "b.safetensors")
    return [str(folder / "a.safetensors"), str(folder / "b.safetensors")]


def called(*words: str) -> Any:
    return CliRunner().invoke(app, ["weights", *words])


def test_match_map_verify(tmp_path: Path) -> None:
    paths, report, key_map = saved(tmp_path), str(tmp_path / "r.json"), str(tmp_path / "m.json")
    result = called("match", *paths, "-o", report, "--json")
    assert result.exit_code == 0, result.output
    held = json.loads(result.stdout)
    summary = held["summary"]
    assert summary["scenario"] == "copied"
    assert summary["mean_cosine_similarity"] == pytest.approx(1.0)
    assert summary["high_similarity_count"] == len(held["matches"])
    assert (summary["medium_similarity_count"], summary["low_similarity_count"]) == (0, 0)
    wanted = {"reference", "native", "relation", "slice", "permutation", "cosine", "pearson", "rel_l2", "confidence"}
    assert wanted <= held["matches"][0].keys()
    assert called("map", report, "-o", key_map).exit_code == 0
    result = called("verify", *paths, "--map", key_map)
    assert result.exit_code == 0, result.output
    assert "every tensor is exact" in result.stdout


def test_scenarios_of_fine_tuned_and_unrelated_models(tmp_path: Path) -> None:
    paths = saved(tmp_path, noise=0.6)
    summary = json.loads(called("match", *paths, "--json").stdout)["summary"]
    assert (summary["scenario"], summary["medium_similarity_count"] > 40) == ("transformed", True)
    save_file(fastvideo_like(longcat_like(2, seed=5)), tmp_path / "b.safetensors")
    result = called("match", *paths)
    assert result.exit_code == 1
    assert "retrained: no clear correspondence" in result.stdout


def test_an_interrupted_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, report = saved(tmp_path), str(tmp_path / "r.json")
    whole = Matcher.entries

    def interrupted(self: Matcher, known: Any = None) -> Any:
        for number, entry in enumerate(whole(self, known)):
            if number == 5:
                raise KeyboardInterrupt
            yield entry

    monkeypatch.setattr(Matcher, "entries", interrupted)
    result = called("match", *paths, "-o", report)
    assert result.exit_code == 1
    assert "--resume" in result.stderr
    partial = json.loads(Path(report).read_text(encoding="utf-8"))
    assert (partial["complete"], len(partial["matches"])) == (False, 5)
    assert "is partial" in called("map", report, "-o", str(tmp_path / "m.json")).stderr
    monkeypatch.setattr(Matcher, "entries", whole)
    partial["matches"][0]["rel_l2"] = 0.125  # shows that it is taken over, not measured again
    Path(report).write_text(json.dumps(partial), encoding="utf-8")
    assert called("match", *paths, "-o", report, "--resume").exit_code == 0
    done = json.loads(Path(report).read_text(encoding="utf-8"))
    assert done["complete"]
    assert done["matches"][0]["rel_l2"] == 0.125
    save_file(longcat_like(3), paths[0])
    assert "other checkpoints" in called("match", *paths, "-o", report, "--resume").stderr


class Killed(BaseException):
    """Ends a run as kill -9 does: nothing is written after it."""


@pytest.mark.parametrize("moment", ["finding", "measuring"])
def test_a_killed_run_is_resumed_to_the_same_report(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, report = saved(tmp_path, noise=0.01), tmp_path / "r.json"
    assert called("match", *paths, "-o", str(tmp_path / "whole.json")).exit_code == 0
    told: list[str] = []

    def killing(self: Progress, stage: str, count: int) -> None:
        told.append(stage)
        if told.count(moment) == 30:
            raise Killed

    monkeypatch.setattr(gathering, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(os, "fsync", lambda number: None)  # many reports, none of which has to outlive the machine
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "tell", killing)
        with pytest.raises(Killed):
            called("match", *paths, "-o", str(report))
    partial = json.loads(report.read_text(encoding="utf-8"))
    assert not partial["complete"]
    assert partial["pending"]
    assert called("match", *paths, "-o", str(report), "--resume").exit_code == 0
    resumed, whole = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("r.json", "whole.json"))
    assert resumed == whole


def test_ctrl_c_while_measuring_leaves_a_partial_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, report = saved(tmp_path), tmp_path / "r.json"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # behind a shell's & it is ignored
    monkeypatch.setattr(Matcher, "_doubted", lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        result = called("match", *paths, "-o", str(report))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.exit_code, "--resume" in result.stderr) == (1, True)
    held = json.loads(report.read_text(encoding="utf-8"))
    assert (held["complete"], held["matches"]) == (False, [])
    assert len(held["pending"]) > 40
    assert "(partial)" in result.stdout


def test_packed_weights_are_said_to_be_packed(tmp_path: Path) -> None:
    packed = torch.randint(0, 255, (64, 64), dtype=torch.uint8)
    save_file({"a.weight": packed, "a.weight.absmax": torch.rand(64)}, tmp_path / "a.safetensors")
    save_file({"a.weight": torch.randn(128, 64)}, tmp_path / "b.safetensors")
    paths = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors")]
    assert "1 tensors are packed as bitsandbytes 4 bit (a.weight, ...)" in called("inspect", paths[0]).stdout
    held = json.loads(called("match", *paths, "--json").stdout)
    assert "dequantise first" in held["notes"][0]
    why = {entry["reference"]: entry["why"] for entry in held["matches"]}
    assert "packed as bitsandbytes 4 bit" in why["a.weight"]


def test_progress_tells_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 2.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    progress = Progress({"measuring": (8_000_000_000, "bytes")}, quiet=False)
    for _ in range(2):
        progress.tell("measuring", 2_000_000_000)
    assert "measuring 4.0 of 8.0 GB, 2.00 GB/s, 2 s left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "3"], "is no size of at least 16MB"), (["--memory", "lots"], "valid: 500MB, 2GB"),
        (["--resume"], "name it by -o"), (["--sample-size", "0"], "sample-size"),
        (["--max-weights", "0"], "max-weights"),
    ],
)  # fmt: skip
def test_wrong_options(words: list[str], said: str, tmp_path: Path) -> None:
    result = called("match", *saved(tmp_path), *words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    report = tmp_path / "r.json"
    report.write_text("before", encoding="utf-8")
    paths = saved(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    result = called("match", *paths, "-o", str(report))
    assert result.exit_code == 2
    assert "No space left on device; what was there is untouched" in result.stderr
    assert report.read_text(encoding="utf-8") == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "r.json"]


def test_a_report_that_is_none(tmp_path: Path) -> None:
    out, report = str(tmp_path / "m.json"), tmp_path / "r.json"
    assert called("map", str(report), "-o", out).exit_code == 2
    for text in ("{", "[]", '{"schema": "dit-parity-weight-match", "schema_version": 1}'):
        report.write_text(text, encoding="utf-8")
        result = called("map", str(report), "-o", out)
        assert result.exit_code == 2, result.output
        assert not Path(out).exists()


def test_only_the_first_weights(tmp_path: Path) -> None:
    held = json.loads(called("match", *saved(tmp_path), "--max-weights", "6", "--json").stdout)
    assert len({entry["reference"] for entry in held["matches"]}) == 6
