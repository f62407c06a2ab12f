"""Where a pair's reference comes from: resident beside the native, resident before it, or recorded elsewhere."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from parity.cached import cached_recording
from parity.errors import RecordError
from parity.io.cache import Use
from parity.io.recording import RecordingFolder
from parity.live import LiveReference
from parity.pair import Build, ModelPair
from parity.recorded import OtherDtypes, Recorded
from parity.recorder import Plan, ReferenceAtWork, State
from parity.stage import DrawOf, Options, Question

AskFor = Callable[[ModelPair, Sequence[Path], Question], Mapping[str, Any]]
"""Puts a question about recordings to another interpreter: that of the side asked, then what it was made against."""


@dataclass(frozen=True)
class ReferenceSources:
    """How references are had.

    Args:
        one_resident: one model at a time: the reference's passes are computed first and kept in the cache.
        cache: folder of the cache. cache_limit: bytes it may hold; None: any number.
        folders: recordings made elsewhere, by pair; their models are never loaded.
        natives: recordings of natives, by pair: then nothing is loaded, two recordings are compared.
        ask_reference, ask_native: put a question to the environment a recording was made in; None: it is not to be had.
        tell: shown progress.
    """

    one_resident: bool = False
    cache: Path = Path(".parity_cache")
    cache_limit: int | None = None
    folders: Mapping[str, Path] = field(default_factory=dict)
    natives: Mapping[str, Path] = field(default_factory=dict)
    ask_reference: AskFor | None = None
    ask_native: AskFor | None = None
    tell: Callable[[str], None] = lambda text: None


def recordings(folders: Sequence[Path]) -> dict[str, Path]:
    """Return recordings by the pair they are of.

    Raises:
        RecordError: a folder holds no complete recording, or two are of one pair.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        pair = str(RecordingFolder(folder).manifest()["identity"]["pair"])
        if pair in found:
            raise RecordError(f"{found[pair]} and {folder} are both recordings of {pair!r}; name one of them")
        found[pair] = folder
    return found


def states_of(folder: Path) -> set[State]:
    """Return the LoRA states and variants that were recorded."""
    draws = RecordingFolder(folder).manifest()["draws"].values()
    return {(bool(draw["lora"]), str(draw["variant"])) for draw in draws}


def recorded_build(folder: Path) -> tuple[Build, Options]:
    """Return what was built and how it was run when a reference was recorded.

    Raises:
        RecordError: there is no complete recording.
    """
    manifest = RecordingFolder(folder).manifest()
    held, seeds = manifest["identity"], [int(draw["seed"]) for draw in manifest["draws"].values()]
    dtype, shadow = (getattr(torch, str(held[name])) for name in ("dtype", "shadow_dtype"))
    build = Build(str(held["size"]), dtype, torch.device(str(held["device"])), int(held["weights_seed"]))
    first, last = min(seeds, default=0), max(seeds, default=0)
    return build, Options(first, draws=last - first + 1, twins=int(held["twins"]), shadow_dtype=shadow)


class References:
    """Hands out recorded references where the models are not to be resident together.

    Attributes:
        rooms: by pair, what lets go of its native before the reference is loaded.
    """

    def __init__(self, sources: ReferenceSources) -> None:
        self._sources = sources
        self._dtypes: dict[str, dict[str, torch.dtype]] = {}
        self._at_work: ReferenceAtWork | None = None
        self._uses: dict[str, Use] = {}
        self.rooms: dict[str, Callable[[], None]] = {}

    def of(self, pair: ModelPair, build: Build, options: Options, states: tuple[State, ...]) -> Recorded | None:
        """Return the recorded reference of a pair, None where both models are to be resident.

        Raises:
            RecordError: the recording is damaged, or of something else.
            ParityError: the reference cannot be loaded or run.
        """
        folder = self._sources.folders.get(pair.name)
        if folder is not None:
            ask = None if self._sources.ask_reference is None else partial(self._sources.ask_reference, pair, [folder])
            return Recorded(folder, pair, build, options, ask=ask)
        if not self._sources.one_resident:
            return None
        plan = Plan(pair, build, options, states, self._dtypes.get(pair.name, {}))
        self.let_go()
        folder, work = self._in_cache(plan), partial(self._work, plan)
        return Recorded(folder, pair, build, options, work=work, let_go=self.let_go, kept="cache")

    def learn(self, pair: str, error: OtherDtypes) -> None:
        """Note the native's dtypes, for which the reference is to be recorded.

        Raises:
            OtherDtypes: the recording was made elsewhere, or was made for just these dtypes.
        """
        if pair in self._sources.folders or self._dtypes.get(pair) == error.native_dtypes:
            raise error
        self._dtypes[pair] = error.native_dtypes

    def _in_cache(self, plan: Plan) -> Path:
        at_work = ReferenceAtWork(plan)
        sources = self._sources
        try:
            use = cached_recording(at_work, sources.cache, sources.tell, sources.cache_limit)
        finally:
            at_work.close()
        self._uses[plan.pair.name] = use
        return use.folder

    def _work(self, plan: Plan, draw: DrawOf, work: Callable[[LiveReference], Any]) -> Any:
        """Do some work on the reference: loaded again, with the native gone, and kept until the native is needed."""
        if self._at_work is None or self._at_work.plan is not plan:
            self.let_go()
            self.rooms.get(plan.pair.name, lambda: None)()
            _free_memory()
            self._at_work = ReferenceAtWork(plan)
        return self._at_work.working(draw, work)

    def leave(self, pair: str) -> None:
        """Forget a pair whose session is closed: its native has no room to make, its recording may be removed."""
        self.let_go()
        self.rooms.pop(pair, None)
        if (use := self._uses.pop(pair, None)) is not None:
            use.leave()

    def let_go(self) -> None:
        """Let go of a reference that was loaded once more."""
        if self._at_work is not None:
            at_work, self._at_work = self._at_work, None
            at_work.close()
            del at_work
            _free_memory()


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
