"""Two recordings, judged against each other: no model is loaded, the pair only says what its taps mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parity.about import About, places_of
from parity.errors import RecordError
from parity.execution.decisions import Decisions
from parity.execution.passes import Restart
from parity.execution.trace import Trace
from parity.identity import asked_for, check_inputs, check_same, key_of
from parity.io.recording import RECORDING, RecordingFolder
from parity.io.records import as_written
from parity.io.tree import printable
from parity.lora.adapter import LoraAdapter
from parity.pair import Build, ModelPair, in_variant
from parity.recorded import Recorded, compiled_from
from parity.stage import Compiled, DrawOf, NativePasses, Options, ReferenceStage, placed
from parity.weights.load import WeightComparison


class RecordedNative:
    """A recorded native.

    Args:
        folder: the recording.
        reference: the recorded reference it must have been in lockstep with.
        pair: the pair. build: what is built. options: how it is run.

    Raises:
        RecordError: the recording is incomplete, damaged, or of something else; names the field.
    """

    def __init__(self, folder: Path, reference: Recorded, pair: ModelPair, build: Build, options: Options) -> None:
        self.folder, self._device = RecordingFolder(folder), build.device
        self.manifest = self.folder.manifest()
        wanted = asked_for(pair, build, options, pair.taps(build), "native")
        wanted["reference"] = key_of(reference.identity)
        check_same(wanted, self.manifest["identity"], str(folder))

    @property
    def has_tables(self) -> bool:
        """Whether exact values of tables were known."""
        return bool(self.manifest["has_tables"])

    def held(self, draw: DrawOf) -> Mapping[str, Any]:
        """Return what was noted of a draw.

        Raises:
            RecordError: it was not recorded.
        """
        found: Mapping[str, Any] | None = self.manifest["draws"].get(draw.name)
        if found is None:
            text = f"{self.folder.path} has no draw {draw.name!r}, it has {', '.join(list(self.manifest['draws'])[:6])}"
            raise RecordError(f"{text}\nrecord it: parity record --side native ... --resume")
        return found

    def _trace(self, draw: DrawOf, name: str) -> Trace:
        return self.folder.stored(draw.name, name, self._device).trace()

    def learn_constants(self, draw: DrawOf) -> None:
        """Nothing: it was done when the native was recorded."""

    def baseline(self, draw: DrawOf) -> Trace:
        """Return the free-running pass without the LoRA; older recordings have its output alone."""
        return self._trace(draw, "baseline")

    def free(self, draw: DrawOf) -> Trace:
        """Return the free-running pass.

        Raises:
            RecordError: the native was recorded with other inputs than the reference.
        """
        with as_written(self.folder.path, RECORDING):
            check_inputs(draw, self.held(draw)["inputs"], str(self.folder.path))
        return self._trace(draw, "free")

    def compiled(self, draw: DrawOf) -> Compiled | None:
        """Return how the output of compiled parts compares with eager's."""
        with as_written(self.folder.path, RECORDING):
            return compiled_from(self.held(draw)["compiled"])

    def lockstep(self, draw: DrawOf, restart: Callable[[], Restart], decisions: Decisions) -> NativePasses:
        """Return the shadowed pass as it was recorded."""
        with as_written(self.folder.path, RECORDING):
            observer = [str(where) for where in printable(self.held(draw)["observer"])]
        return NativePasses(self._trace(draw, "lockstep"), observer)

    def as_stored(self, draw: DrawOf, restart: Callable[[], Restart], decisions: Decisions) -> Trace:
        """Return the pass in which remembered tables have their stored values."""
        return self._trace(draw, "as_stored")


class ComparedSession:
    """What `run_state` needs of a pair whose two sides are recordings.

    Args:
        pair: the pair. build: what is built.
        recorded: the reference. native: the native.
    """

    traces: dict[Any, Any] | None = None

    def __init__(self, pair: ModelPair, build: Build, recorded: Recorded, native: RecordedNative) -> None:
        self.pair, self.build, self.recorded, self._native = pair, build, recorded, native
        self.taps = pair.taps(build)
        self.weights: dict[str, WeightComparison] = {}

    @property
    def reference_stage(self) -> ReferenceStage:
        """The recorded reference."""
        return self.recorded

    @property
    def native_stage(self) -> RecordedNative:
        """The recorded native."""
        return self._native

    @property
    def adapter(self) -> LoraAdapter | None:
        """The LoRA in the reference's module names."""
        return self.recorded.adapter

    @contextmanager
    def lora(self, on: bool) -> Iterator[None]:
        """Nothing: each side was recorded in its state."""
        yield

    def inputs(self, seed: int, variant: str = "") -> dict[str, Any]:
        """Return the inputs the pair draws."""
        return self.placed(in_variant(self.pair, variant).inputs(self.build, seed))

    def placed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return inputs on the build's device."""
        return placed(inputs, self.build.device)

    @contextmanager
    def variant(self, name: str) -> Iterator[None]:
        """Take the taps of one of the pair's variants or lanes while the context is open."""
        kept, self.taps = self.taps, in_variant(self.pair, name).taps(self.build)
        try:
            yield
        finally:
            self.taps = kept

    def finer_weights(self, lora: bool) -> list[str]:
        """List the native's weights that were rounded copies of finer values in a LoRA state."""
        with as_written(self._native.folder.path, RECORDING):
            draws = self._native.manifest["draws"].values()
            return next((list(printable(d["finer_weights"])) for d in draws if d["lora"] == lora), [])

    def release_native(self) -> None:
        """Nothing: no model is here."""

    def close(self) -> None:
        """Nothing: no model is here."""

    def about(self) -> About:
        """Return what was noted of the pair when the native was recorded."""
        with as_written(self._native.folder.path, RECORDING):
            held = printable(self._native.manifest["about"])
            wrong = [WeightComparison(finer=None, **w) for w in held["wrong"]]
            return About(dict(held["record"]), places_of(self.pair, self.build, wrong), dict(held["known"]))
