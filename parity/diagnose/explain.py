"""Differences explained: by the nearest reference variant, which also decides what was undecided, and by lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial

import torch

from parity.diagnose.asking import nearest_asked, values_asked
from parity.diagnose.candidates import Target
from parity.diagnose.explained import Explained
from parity.diagnose.faulty import Faulty, faulty_taps
from parity.diagnose.held import HeldWeights
from parity.diagnose.names import merged, name_bugs
from parity.diagnose.nearest import EXPLAINED, Nearest
from parity.diagnose.places import place_of_difference
from parity.diagnose.recorded_ops import from_data, values_as_tensors, with_values
from parity.diagnose.repair import RepairShop
from parity.diagnose.repaired import Repair
from parity.diagnose.search import by_dtype, low_dtypes, search, target_of
from parity.diagnose.side_ops import SideOps, side_ops
from parity.draws import Draw, dtypes_of, restart_of
from parity.errors import ParityError, RecordError
from parity.execution.passes import FromReference, Restart
from parity.execution.tap import Tap
from parity.live import LiveNative, LiveReference
from parity.numerics.evidence import Evidence
from parity.numerics.limits import Limits
from parity.numerics.verdict import Judged, VerdictClass
from parity.stage import NativeStage, Question, ReferenceStage

_NO_NEAREST = (
    "nearest reference variants were not to be had: name the reference's interpreter "
    "(--parity-reference-python, of `parity compare` --reference-python)"
)
_NO_OPS = "lines and repairs were not to be had: the {side}'s recording lacks its ops, record it again"
_NO_REPAIR = "repairs were not tried: name the native's interpreter (of `parity compare` --native-python)"


class Explanation:
    """A second look at the differences of a draw, in two parts, so that one model at a time is needed.

    Args:
        draw: the draw to search in.
        judged: the verdicts so far, before impacts; those the search decides are changed.
        limits: in force.
        native: the native's ops where its model may have to make room for the reference's; None: traced when needed.

    Attributes:
        found: what was found until now.
    """

    def __init__(
        self, draw: Draw, judged: Mapping[str, Judged], limits: Limits, native: SideOps | None = None
    ) -> None:
        self._draw, self._judged, self._limits = draw, judged, limits
        self._native = native
        self._reference: SideOps | None = None
        self._told: dict[str, list[tuple[str, str]]] = {}
        self.found = Explained()

    @property
    def _differs(self) -> bool:
        return any(j.different for j in self._judged.values())

    # --- the reference's part -----------------------------------------------------------------------------------------

    def by_reference(self) -> None:
        """Search nearest variants, which decide what was undecided, and get the reference's ops."""
        evidence = self._draw.evidence
        taps = [t for t in self._draw.session.taps if t.name in self._judged]
        taps = [
            t for t in taps
            if _open(self._judged[t.name], evidence[t.name], self._limits, wider=self._one_is_wider(t))
        ]  # fmt: skip
        if not taps and not self._differs:
            return
        stage = self._draw.session.reference_stage
        if stage.at_work(self._draw.of, lambda reference: self._searched(reference, taps)) is None:
            self._asked(stage, taps)

    def _one_is_wider(self, tap: Tap) -> bool:
        """Say whether one side alone computes anything in float64 on the way to a tap."""
        sides = self._draw.reference, self._draw.native
        wide = [any(op.endswith("float64") for op in side.segment_before(tap.name)) for side in sides]
        return wide[0] != wide[1]

    def _searched(self, reference: LiveReference, taps: list[Tap]) -> bool:
        draw, dtypes = self._draw, dtypes_of(self._draw.free_native)
        targets = [target_of(draw, tap) for tap in taps]
        self._take(by_dtype(
            lambda some, low: search(reference, draw.of, draw.reference, some, dtypes, low), targets, low_dtypes(draw)
        ))  # fmt: skip
        if self._differs:
            restart = FromReference(dtypes, draw.inputs)
            self._reference = side_ops(reference, draw.of, restart, values_at=faulty_taps(draw, self._judged))
        return True

    def _asked(self, stage: ReferenceStage, taps: list[Tap]) -> None:
        """Ask for the nearest variants where the reference can be loaded; its ops were recorded."""
        if taps:
            try:
                targets = [target_of(self._draw, tap) for tap in taps]
                self._take(by_dtype(partial(self._nearest_asked, stage), targets, low_dtypes(self._draw)))
            except ParityError as error:
                self._miss(f"nearest reference variants were not to be had: {_first_line(error)}")
        if self._differs:
            self._reference = self._recorded(stage, "reference")
            try:
                values = values_asked(stage, self._draw.of, faulty_taps(self._draw, self._judged))
                self._reference = self._reference and with_values(self._reference, values)
            except ParityError as error:
                self._miss(f"values of the reference's ops were not to be had: {_first_line(error)}")

    def _nearest_asked(
        self, stage: ReferenceStage, targets: Sequence[Target], low: torch.dtype
    ) -> dict[str, Nearest]:
        found = nearest_asked(stage, self._draw.of, targets, low)
        self._miss(_NO_NEAREST if found is None and _NO_NEAREST not in self.found.missing else "")
        return found or {}

    def _take(self, nearest: dict[str, Nearest]) -> None:
        self.found.nearest = nearest
        for name, variant in nearest.items():
            _decide(self._judged[name], variant)

    # --- the native's part --------------------------------------------------------------------------------------------

    def by_native(self) -> None:
        """Say where the sides part, try to repair the first faulty taps, and name what was found."""
        if not self._differs:
            return
        try:
            self._placed_and_repaired()
        finally:
            here = any(self.found.wrong.values()) and isinstance(self._stage, LiveNative)
            held = HeldWeights(self._draw.session) if here else None
            self.found.signatures = name_bugs(self._draw, self._judged, self.found, held)
            for name, names in self._told.items():
                self.found.signatures[name] = merged(self.found.signatures.get(name, []), names)

    def _placed_and_repaired(self) -> None:
        if self._reference is None:
            return
        faulty = self._faulty()
        with self._at_native(needed=bool(faulty) or self._native is None):
            if self._native is None:
                self._native = native_ops(self._draw, self._judged) or self._recorded(self._stage, "native")
            if self._native is None:
                return
            for name, verdict in self._judged.items():
                if verdict.different:
                    self._place(name, verdict, self._native, self._reference)
            if faulty:
                self._repair(faulty, self._native, self._reference)

    @property
    def _stage(self) -> NativeStage:
        return self._draw.session.native_stage

    def _at_native(self, needed: bool) -> AbstractContextManager[None]:
        """Put the LoRA on a native that was let go, or had it taken off, since the draw was judged."""
        session = self._draw.session
        return session.lora(self._draw.of.lora) if needed and session.recorded is not None else nullcontext()

    def _place(self, name: str, verdict: Judged, native: SideOps, reference: SideOps) -> None:
        place = place_of_difference(name, native, reference, verdict.logic)
        weights = self._draw.session.weights
        self.found.places[name] = place
        self.found.wrong[name] = [w for k in place.weights if (w := weights.get(k)) is not None and w.differs]

    def _faulty(self) -> list[Tap]:
        """Return the first faulty tap of each kind."""
        names = faulty_taps(self._draw, self._judged)
        return [tap for name in names for tap in self._draw.session.taps if tap.name == name]

    def _repair(self, taps: list[Tap], native: SideOps, reference: SideOps) -> None:
        """Try to repair taps, here where the native's model is, or where it can be loaded."""
        stage = self._stage
        wrong = frozenset(name for name, w in self._draw.session.weights.items() if w.differs)
        if isinstance(stage, LiveNative):
            stage.learn_constants(self._draw.of)
            shop = RepairShop(self._job, stage, native, reference, self._restart, self._limits.logic_error, wrong)
            self.found.repairs = shop.repairs(taps)
            return
        note = {
            "taps": [t.name for t in taps], "before": {t.name: self._job.before[t.name] for t in taps},
            "noise": {t.name: self._job.noise[t.name] for t in taps}, "wrong": sorted(wrong),
            "limit": self._limits.logic_error,
            "read": {t: [w.native_key for w in found] for t, found in self.found.wrong.items() if found},
        }  # fmt: skip
        try:
            held = values_as_tensors(reference)
            answer = stage.asked(Question("repair", self._draw.of, note, held))
        except ParityError as error:
            self._miss(f"repairs were not tried: {_first_line(error)}")
            return
        self._miss(_NO_REPAIR if answer is None else "")
        if answer is not None:
            self.found.repairs = {str(n): Repair(**r) for n, r in answer["repairs"].items()}
            self._told = {str(n): [(str(a), str(b)) for a, b in names] for n, names in answer["names"].items()}

    @cached_property
    def _job(self) -> Faulty:
        evidence = self._draw.evidence
        return Faulty(
            self._draw.of, self._draw.reference, self._draw.native,
            {n: e.logic_error for n, e in evidence.items()}, {n: e.noise for n, e in evidence.items()},
            getattr(self._draw.session, "native_adapter", None) if self._draw.of.lora else None,
        )  # fmt: skip

    def _restart(self) -> Restart:
        return restart_of(self._draw.session.taps, self._draw.reference, self._draw.free_native, self._draw.inputs)

    # --- what was not to be had ---------------------------------------------------------------------------------------

    def _recorded(self, stage: ReferenceStage | NativeStage, side: str) -> SideOps | None:
        held = stage.recorded_ops(self._draw.of)
        if held is None:
            self._miss(_NO_OPS.format(side=side))
            return None
        try:
            return from_data(held)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            text = f"the {side}'s recorded ops are none of this project's: {type(error).__name__}"
            raise RecordError(text) from error

    def _miss(self, text: str) -> None:
        self.found.missing = "; ".join(filter(None, (self.found.missing, text)))


def native_ops(draw: Draw, judged: Mapping[str, Judged]) -> SideOps | None:
    """Trace the native's ops where something differs; None where nothing does, or its model is not here."""
    stage = draw.session.native_stage
    if not isinstance(stage, LiveNative) or not any(j.different for j in judged.values()):
        return None
    stage.learn_constants(draw.of)
    restart = restart_of(draw.session.taps, draw.reference, draw.free_native, draw.inputs)
    return side_ops(stage, draw.of, restart, draw.reference.decisions, faulty_taps(draw, judged))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _open(judged: Judged, evidence: Evidence, limits: Limits, *, wider: bool) -> bool:
    """Say whether a tap's roundings are to be explained: it differs, or nothing shows that it does not.

    A few bits that a wider dtype leaves otherwise are no sign to statistics, but one that a variant can prove.
    """
    if judged.logic or evidence.bit_exact or not evidence.logic_error <= limits.logic_error:
        return False
    if wider or judged.direction or judged.amber or any(r.startswith("no power") for r in judged.reasons):
        return True
    whole = evidence.excesses.get("identity")
    return judged.cls is VerdictClass.SAME and whole is not None and whole.departure > limits.margin


def _decide(judged: Judged, nearest: Nearest) -> None:
    """Take a variant near enough for what it is: the native has these roundings and not the reference's."""
    if judged.different or not nearest.proves:
        return
    word = "less" if nearest.direction > 0 else "more"
    judged.cls, judged.direction, judged.amber, judged.projection = (
        VerdictClass.DROWNED,
        nearest.direction,
        False,
        "nearest",
    )
    judged.reasons = [
        f"nearest variant at {nearest.ratio:.2g} of the distance (limit {EXPLAINED}): "
        f"the native is {word} precise than the reference"
    ]  # fmt: skip
