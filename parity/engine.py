"""Results by case, each computed once: what pytest and the command line look up."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from parity.about import About, TapPlace, about
from parity.case import ParityCase
from parity.compared import ComparedSession, RecordedNative
from parity.described import described, ops_by_dtype
from parity.diagnose.likely import likely_causes
from parity.errors import NotReached, ParityError
from parity.failures import bare, kept
from parity.numerics.evidence import Evidence
from parity.numerics.verdict import Judged, VerdictClass
from parity.pair import Build, ModelPair
from parity.recorded import OtherDtypes
from parity.recorder import State
from parity.references import References, ReferenceSources
from parity.report.record import case_record
from parity.run import Options, StateResult, run_state
from parity.session import PairSession
from parity.unreached import Unreached

Session = PairSession | ComparedSession


@dataclass(frozen=True)
class Settings:
    """What a run is asked for; None: as the pair says."""

    dtype: torch.dtype | None = None
    size: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    options: Options = field(default_factory=Options)
    sources: ReferenceSources = field(default_factory=ReferenceSources)

    def build(self, pair: ModelPair) -> Build:
        """Return what is built for a pair: its first size where it does not have the one asked for."""
        size = self.size if self.size is not None and self.size in pair.sizes else pair.sizes[0]
        return Build(size=size, dtype=self.dtype or pair.dtypes[0], device=self.device)


@dataclass
class _State:
    """A state that ran, ready to be looked up."""

    result: StateResult
    first_different: str | None
    record: dict[str, Any]
    lora: list[dict[str, Any]] = field(default_factory=list)
    """What is wrong with how the native applies the LoRA."""


class Engine:
    """Loads a pair when its first case asks, runs a LoRA state when its first case asks, and keeps what it found.

    A pair or state that fails keeps its error: every case of it reports it, nothing is tried again. What is kept of a
    pair holds no tensor, so that looking a case up never needs its models.
    """

    def __init__(self, pairs: Mapping[str, ModelPair], settings: Settings) -> None:
        self.pairs, self.settings = pairs, settings
        self._sessions: dict[str, Session] = {}
        self._about: dict[str, About] = {}
        self._failed: dict[str, ParityError] = {}
        self._states: dict[tuple[str, str], _State | ParityError] = {}
        self._planned: dict[str, dict[State, None]] = {}
        self._references = References(settings.sources)
        self._unreached = Unreached({*settings.sources.folders, *settings.sources.natives})

    def session(self, name: str) -> Session:
        """Return the pair's loaded models.

        Raises:
            ParityError: the pair cannot be loaded.
        """
        if name in self._failed:
            raise bare(self._failed[name])
        if name not in self._sessions:
            try:
                self._load(name)
            except Exception as error:
                self._failed[name] = failed = kept(error, f"loading the pair {name!r}")
                self._let_go(name)
                raise failed from None
        return self._sessions[name]

    def expect(self, cases: Iterable[ParityCase]) -> None:
        """Name the cases that will be asked for: all their states are recorded while the reference is loaded."""
        for case in cases:
            self._planned.setdefault(case.pair, {})[case.lora, case.variant] = None

    def _load(self, name: str) -> None:
        if self.settings.device.type != "cpu":
            self.close()  # on a GPU one pair at a time is resident
        pair, build = self._unreached.left_out(self.pairs[name]), self.settings.build(self.pairs[name])
        recorded = self._references.of(pair, build, self.settings.options, tuple(self._planned.get(name, ())))
        self._free_memory()
        folder = self.settings.sources.natives.get(name)
        if folder is not None and recorded is not None:
            ask = self.settings.sources.ask_native
            asked = None if ask is None else partial(ask, pair, [folder, recorded.folder.path])
            native = RecordedNative(folder, recorded, pair, build, self.settings.options, asked)
            compared = self._sessions[name] = ComparedSession(pair, build, recorded, native)
            self._about[name] = compared.about()
            return
        session = self._sessions[name] = PairSession(pair, build, recorded)
        self._references.rooms[name] = session.release_native
        if name not in self._about:
            self._about[name] = self._unreached.told(about(session), self.pairs[name], build)

    def close(self) -> None:
        """Let go of all models; what was found stays."""
        for name in list(self._sessions):
            self._let_go(name)
        self._free_memory()

    def _let_go(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is not None:
            session.close()
        self._references.leave(name)

    def _free_memory(self) -> None:
        if self.settings.device.type != "cpu":
            gc.collect()
            torch.cuda.empty_cache()

    def result(self, case: ParityCase) -> StateResult:
        """Return what was found for the case's pair and state.

        Raises:
            ParityError: the pair cannot be loaded or run; the same error for every case of the state.
        """
        return self._state(case).result

    def _state(self, case: ParityCase) -> _State:
        key = (case.pair, case.state)
        if key not in self._states:
            try:
                self._states[key] = self._run(case)
            except Exception as error:
                self._states[key] = kept(error, f"running {case.pair} {case.state}")
                self._free_memory()
        held = self._states[key]
        if isinstance(held, ParityError):
            raise bare(held)
        return held

    def _run(self, case: ParityCase) -> _State:
        if (case.lora, case.variant) not in self._planned.get(case.pair, {}):
            self.expect([case])
            if self.settings.sources.one_resident:
                self._let_go(case.pair)  # its recording does not have this state yet
        options = replace(self.settings.options, variant=case.variant)
        session, found = self._tried(case, options)
        self._unreached.judge(found, self.pairs[case.pair], self.settings.build(self.pairs[case.pair]), case.variant)
        lora = session.lora_found().get("native", {}).get("findings", []) if case.lora else []
        return _State(found, found.first_different, self._described(case, session, found), lora)

    def _tried(self, case: ParityCase, options: Options) -> tuple[Session, StateResult]:
        """Run a state, and again with what is known once the models ran: the native's dtypes, taps never reached."""
        while True:
            try:
                session = self.session(case.pair)
                return session, run_state(session, case.lora, options)
            except OtherDtypes as error:  # the reference goes on from the coarser of both
                self._references.learn(case.pair, error)
            except NotReached as error:
                self._unreached.learn(case.pair, case.variant, error)
                self._failed.pop(case.pair, None)
            self._let_go(case.pair)

    def judged(self, case: ParityCase) -> Judged:
        """Return the verdict of one case; with an observer effect nothing passes."""
        found = self.result(case)
        judged = found.judged[case.tap]
        if found.observer and not judged.different:
            why = f"observer effect: low values differ with and without shadow, first {found.observer[0]}"
            return replace(judged, cls=VerdictClass.NOT_JUDGED, reasons=[why, *judged.reasons])
        return judged

    def known(self, case: ParityCase) -> str | None:
        """Return why the pair accepts a precision difference at the case's tap, None where it does not."""
        table = self._facts(case).known
        return table.get(case.tap, table.get(self.result(case).facts[case.tap].kind))

    def _facts(self, case: ParityCase) -> About:
        return self._about[case.pair]

    def case_record(self, case: ParityCase) -> dict[str, Any]:
        """Return the record of one case.

        Raises:
            ParityError: the pair cannot be loaded or run.
        """
        state = self._state(case)
        found, judged, place = state.result, self.judged(case), self._facts(case).taps[case.tap]
        draws = [d[case.tap] for d in found.draws if case.tap in d]
        return case_record(
            case_id=case.id,
            pair=case.pair,
            state=case.state,
            judged=judged,
            draws=draws,
            limits=found.limits,
            paths=(place.reference, place.native),
            drift=found.drift.get(case.tap, 0.0),
            first=state.first_different,
            likely=self._likely(judged, draws, place, state),
            known=self.known(case) if judged.different and not judged.logic else None,
            order=place.order,
            nearest=None if (near := found.explained.nearest.get(case.tap)) is None else near.as_dict(),
            repair=None if (fix := found.explained.repairs.get(case.tap)) is None else fix.as_dict(),
            signatures=found.explained.signatures.get(case.tap, []),
            place=None if (where := found.explained.places.get(case.tap)) is None else where.as_dict(),
            residual=found.profiles.get(case.tap),
            dtypes=ops_by_dtype(found, judged),
        )

    def _likely(self, judged: Judged, draws: list[Evidence], place: TapPlace, state: _State) -> list[str]:
        if not draws:
            return []
        found = state.result
        inside = f"{place.native.split(' ')[0].split('[')[0]}."
        stored = sum(name.startswith(inside) for name in found.stored)
        causes = likely_causes(judged, draws[0], place.wrong, found.dtypes.get(judged.name, ({}, {})), found.explained)
        if stored and judged.direction > 0:
            causes.insert(0, f"stored-weight rounding: {stored} weights here are rounded copies of finer ones")
        if judged.logic:
            held = [f for f in state.lora if any(f"{module}.".startswith(inside) for module in f["modules"])]
            causes = [*(f"LoRA: {f['message']}" for f in held[:1]), *causes]
        return causes[:3]

    def _unused(self, case: ParityCase, found: StateResult) -> list[str]:
        """List accepted differences that are none: the pair can drop them."""
        differing = [n for n, j in found.judged.items() if j.different]
        met = {*differing, *(found.facts[n].kind for n in differing)}
        return sorted(set(self._facts(case).known) - met)

    def state_record(self, case: ParityCase) -> dict[str, Any]:
        """Return what all cases of a pair and state have in common; the same object each time.

        Raises:
            ParityError: the pair cannot be loaded or run.
        """
        return self._state(case).record

    def _described(self, case: ParityCase, session: Session, found: StateResult) -> dict[str, Any]:
        about, options = self._facts(case).record, self.settings.options
        return described(case, session, found, options, about, self._unused(case, found))
