"""One recorded pass: its values in shards, everything else it showed in `pass.json`, which is written last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parity.errors import RecordError
from parity.execution.decisions import Decisions
from parity.execution.tap import block_of
from parity.execution.trace import OnDemand, TapValue, Trace, joined
from parity.io.records import Kind, as_written, read_record, write_record
from parity.io.shards import ShardReader, ShardWriter

PASS = Kind("dit-parity-pass", 1, "recorded pass")
Calls = list[dict[str, Any]]


class PassWriter:
    """A sink that streams the values of a pass to disk, a block at a time.

    Args:
        folder: where the pass goes.
        low: keep the values as computed. high: keep their shadows.
    """

    def __init__(self, folder: Path, *, low: bool = True, high: bool = True) -> None:
        self.folder, self.low, self.high = folder, low, high
        self._shards = ShardWriter(folder)
        self._calls: dict[str, Calls] = {}
        self._block: str | None = None

    def put(self, name: str, low: Tensor, high: Tensor | None) -> None:
        """Write what one call showed, once its block is complete."""
        if self._block is not None and block_of(name) != self._block:
            self._shards.flush()
        self._block = block_of(name)
        call: dict[str, Any] = {"rows": low.shape[0] if low.dim() else 1}
        if self.low:
            call["low"] = self._shards.add(low)
        if self.high and high is not None:
            call["high"] = self._shards.add(high)
        self._calls.setdefault(name, []).append(call)

    def values(self) -> Mapping[str, TapValue]:
        """Return the values as they are on disk now."""
        self._shards.flush()
        return _values(ShardReader(self.folder, self._shards.shards, checked=True), self._calls)

    @property
    def held_bytes(self) -> int:
        """How much of the pass is in memory, not on disk yet."""
        return self._shards.held_bytes

    def close(self, trace: Trace, extra: Mapping[str, Any] | None = None) -> None:
        """Write what the pass showed besides values; the pass is complete then."""
        made = [[list(key), [self._shards.add(v) for v in found]] for key, found in trace.decisions.made.items()]
        self._shards.flush()
        write_record(
            self.folder / "pass.json",
            {
                "taps": list(self._calls),
                "calls": self._calls,
                "events": dict(sorted(trace.events.items())),
                "kernels": dict(sorted(trace.kernels.items())),
                "ops": trace.ops,
                "dtypes": {name: dict(sorted(found.items())) for name, found in trace.dtypes.items()},
                "decisions": {"made": made, "count": trace.decisions.count, "flips": dict(trace.decisions.flips),
                              "unmatched": dict(trace.decisions.unmatched)},
                "extra": dict(extra or {}),
                "shards": self._shards.shards,
            },
            PASS,
        )  # fmt: skip


def write_pass(folder: Path, trace: Trace, extra: Mapping[str, Any] | None = None) -> None:
    """Write a pass that is in memory."""
    writer = PassWriter(folder)
    for name, value in trace.values.items():
        writer.put(name, value.low, value.high)
    writer.close(trace, extra)


def is_complete(folder: Path) -> bool:
    """Say whether a pass was recorded to its end, with every shard as it was written."""
    try:
        StoredPass(folder).reader.check()
    except RecordError:
        return False
    return True


class StoredPass:
    """A recorded pass.

    Args:
        folder: where it is.
        device: where its values are wanted.
        checked: it was written, or checked, by this process just now.

    Attributes:
        extra: what was noted beside the trace.

    Raises:
        RecordError: it is missing, incomplete, edited, or of another schema.
    """

    def __init__(self, folder: Path, device: torch.device | None = None, *, checked: bool = False) -> None:
        self._path, self._device = folder / "pass.json", device
        self._held = read_record(self._path, PASS)
        with as_written(self._path, PASS):
            self.reader = ShardReader(folder, self._held["shards"], checked=checked)
            self.extra: dict[str, Any] = self._held["extra"]

    def trace(self) -> Trace:
        """Return the pass; its values are read each time they are asked for.

        Where only shadows were kept (twins), they stand for the values as computed too.
        """
        with as_written(self._path, PASS):
            calls = {str(name): self._held["calls"][name] for name in self._held["taps"]}
            return Trace(
                values=_values(self.reader, calls, self._device),
                events=_counted(self._held["events"]),
                kernels=_counted(self._held["kernels"]),
                ops=int(self._held["ops"]),
                decisions=self._decisions(),
                dtypes={name: _counted(found) for name, found in self._held["dtypes"].items()},
            )

    def _decisions(self) -> Decisions:
        held = self._held["decisions"]
        decisions = Decisions(count=int(held["count"]))
        decisions.flips.update(_counted(held["flips"]))
        decisions.unmatched.update(_counted(held["unmatched"]))
        for (segment, op, shape), places in held["made"]:
            decisions.made[segment, op, tuple(shape)] = [self.reader.get(place) for place in places]
        return decisions


def _counted(held: Mapping[str, int]) -> Counter[str]:
    return Counter({str(name): int(count) for name, count in held.items()})


def _values(
    reader: ShardReader, calls: Mapping[str, Calls], device: torch.device | None = None
) -> Mapping[str, TapValue]:
    def read(name: str) -> TapValue:
        with as_written(reader.folder, PASS):
            highs = [_placed(reader.get(c["high"]), device) for c in calls[name] if "high" in c]
            lows = [_placed(reader.get(c["low"]), device) for c in calls[name] if "low" in c]
            if not lows and not highs:
                raise RecordError(f"{reader.folder} has no value of {name[:60]!r}, though it lists that tap")
            return joined(lows or highs, highs or None)

    return OnDemand({name: lambda name=name: read(name) for name in calls})  # type: ignore[misc]


def _placed(value: Tensor, device: torch.device | None) -> Tensor:
    return value if device is None else value.to(device)
