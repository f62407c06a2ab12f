"""Passes of a live side, recorded once each: what an interrupted recording has already is not computed again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from parity.diagnose.recorded_ops import as_data
from parity.diagnose.side_ops import SideOps
from parity.errors import RecordError
from parity.execution.trace import TapValue, Trace
from parity.identity import check_inputs
from parity.io.recording import RecordingFolder
from parity.io.tree import digests_of
from parity.live import LiveSide
from parity.stage import DrawOf

Tell = Callable[[str], None]


class PassRecorder:
    """Records the passes of a side below the folder of their draw.

    Args:
        target: the recording.
        live: the side.
        device: where values are wanted when they are read back.
        tell: shown progress.
    """

    def __init__(self, target: RecordingFolder, live: LiveSide, device: torch.device, tell: Tell) -> None:
        self._target, self._live, self._device, self._tell = target, live, device, tell

    def once(self, draw: DrawOf, name: str, run: Callable[[], Trace], *, low: bool = True, high: bool = True) -> Trace:
        """Record a pass unless it is here already; return it as it is on disk."""
        if not self._target.has(draw.name, name):
            self._tell(f"{draw.name} {name}")
            self._record(draw, name, run, low, high)
        return self._target.stored(draw.name, name, self._device, checked=True).trace()

    def ops_once(self, draw: DrawOf, run: Callable[[], SideOps]) -> None:
        """Record the ops of a draw's lockstep pass unless they are here already."""
        if not self._target.has_ops(draw.name):
            self._tell(f"{draw.name} ops")
            self._live.sinks = lambda _: None
            self._target.write_ops(draw.name, as_data(run()))

    def _record(self, draw: DrawOf, name: str, run: Callable[[], Trace], low: bool, high: bool) -> None:
        writer = self._target.writer(draw.name, name, low=low, high=high)
        self._live.sinks = lambda _: writer
        try:
            trace = run()
        finally:
            self._live.sinks = lambda _: None
        writer.close(trace)


def keep_inputs(target: RecordingFolder, draw: DrawOf) -> None:
    """Record a draw's inputs; those of an interrupted recording must be the same.

    Raises:
        RecordError: an input differs; names it.
    """
    if target.has_tensors((draw.name, "inputs")):
        check_inputs(draw, digests_of(target.inputs(draw.name)), str(target.path))
    else:
        target.write_inputs(draw.name, draw.inputs)


def passes_of(draw: DrawOf, has_tables: bool) -> list[str]:
    """Return the names of the passes a reference's draw is recorded in."""
    twins = [f"twin{k}" for k in range(draw.options.twins)]
    return [*["baseline"] * draw.lora, "free", "lockstep", *twins, *["as_stored"] * has_tables]


def check_room(
    target: RecordingFolder, live: LiveSide, draws: Sequence[DrawOf], weights: Mapping[str, Tensor], tell: Tell
) -> None:
    """Estimate what will be written from one plain pass, and compare it with what the disk has.

    Raises:
        RecordError: the disk has too little.
    """
    sizes, options = _Sizes(), draws[0].options
    live.runner().run(draws[0].inputs, sink=sizes)
    shadow = 8 if options.shadow_dtype == torch.float64 else 4
    lows = sizes.bytes * (2 + any(draw.lora for draw in draws) + live.has_tables)
    highs = sizes.elements * shadow * (1 + options.twins + live.has_tables)
    baselines = sizes.bytes * sum(draw.lora for draw in draws)
    needed = len(draws) * (lows + highs) + baselines + sum(v.numel() * v.element_size() for v in weights.values())
    needed = max(0, needed - target.bytes_of([draw.name for draw in draws]))
    free = shutil.disk_usage(target.path).free
    tell(f"about {needed / 1e6:,.0f} MB to write, {free / 1e9:,.1f} GB free")
    if needed > free:
        raise RecordError(
            f"{target.path}: about {needed / 1e9:.1f} GB are needed, the disk has {free / 1e9:.1f} GB left\n"
            "take smaller inputs, fewer twins or draws, or another folder"
        )


class _Sizes:
    """A sink that only counts."""

    def __init__(self) -> None:
        self.bytes = self.elements = 0

    def put(self, name: str, low: Tensor, high: Tensor | None) -> None:
        """Count one call's values."""
        self.bytes += low.numel() * low.element_size()
        self.elements += low.numel() * (2 if low.is_complex() else 1)

    def values(self) -> Mapping[str, TapValue]:
        """Return nothing: only sizes were kept."""
        return _Anything()


class _Anything(dict[str, TapValue]):
    """Contains every tap: that all were reached is checked when they are recorded."""

    def __contains__(self, key: object) -> bool:
        return True
