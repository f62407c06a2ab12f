"""Results by case, each computed once: what pytest and the command line look up."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from parity.case import ParityCase, absent_taps
from parity.diagnose.likely import likely_causes
from parity.errors import ModelFailed, ParityError
from parity.io.hashing import hash_weights
from parity.io.sources import describe_source
from parity.numerics.verdict import Judged
from parity.pair import Build, ModelPair, Side
from parity.report.record import case_record, false_alarm_rate, limits_record
from parity.run import Options, StateResult, run_state
from parity.session import LoadedSide, PairSession, weight_differences
from parity.weights.load import tensors_of


@dataclass(frozen=True)
class Settings:
    """What a run is asked for; None: as the pair says."""

    dtype: torch.dtype | None = None
    size: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    options: Options = field(default_factory=Options)

    def build(self, pair: ModelPair) -> Build:
        """Return what is built for a pair.

        Raises:
            UsageError: the pair has no such size.
        """
        size = self.size if self.size is not None and self.size in pair.sizes else pair.sizes[0]
        return Build(size=size, dtype=self.dtype or pair.dtypes[0], device=self.device)


class Engine:
    """Loads a pair when its first case asks, runs a LoRA state when its first case asks, and keeps what it found.

    A state that fails keeps its error: every case of it reports it, nothing is run again.
    """

    def __init__(self, pairs: Mapping[str, ModelPair], settings: Settings) -> None:
        self.pairs, self.settings = pairs, settings
        self._sessions: dict[str, PairSession | BaseException] = {}
        self._results: dict[tuple[str, str], StateResult | BaseException] = {}
        self._about: dict[str, dict[str, Any]] = {}

    def session(self, name: str) -> PairSession:
        """Return the pair's loaded models."""
        if name not in self._sessions:
            self._make_room()
            try:
                self._sessions[name] = PairSession(self.pairs[name], self.settings.build(self.pairs[name]))
            except Exception as error:
                self._sessions[name] = error
        held = self._sessions[name]
        if isinstance(held, BaseException):
            raise held
        return held

    def _make_room(self) -> None:
        """On a GPU one pair at a time is resident."""
        if self.settings.device.type == "cpu":
            return
        for name, held in list(self._sessions.items()):
            if isinstance(held, PairSession):
                self._remember(name, held)
                held.close()
                del self._sessions[name]
        gc.collect()
        torch.cuda.empty_cache()

    def result(self, case: ParityCase) -> StateResult:
        """Return what was found for the case's pair and state.

        Raises:
            ParityError: the pair cannot be loaded or run; the same error for every case of the state.
        """
        key = (case.pair, case.state)
        if key not in self._results:
            try:
                self._results[key] = self._run(case)
            except Exception as error:
                self._results[key] = error
        held = self._results[key]
        if isinstance(held, BaseException):
            raise held
        return held

    def _run(self, case: ParityCase) -> StateResult:
        session = self.session(case.pair)
        options = self.settings.options
        try:
            found = run_state(session, case.lora, Options(**{**vars(options), "variant": case.variant}))
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ModelFailed(
                f"out of memory in {case.pair} {case.state}: {str(error).splitlines()[0][:120]}\n"
                "take a smaller --parity-size, fewer --parity-twins, or --parity-device cpu"
            ) from error
        self._remember(case.pair, session)
        return found

    def judged(self, case: ParityCase) -> Judged:
        """Return the verdict of one case."""
        return self.result(case).judged[case.tap]

    def known(self, case: ParityCase) -> str | None:
        """Return why the pair accepts a precision difference at the case's tap, None where it does not."""
        pair = self.pairs[case.pair]
        table = pair.known(self.settings.build(pair))
        facts = self.result(case).facts[case.tap]
        return table.get(case.tap, table.get(facts.kind))

    def case_record(self, case: ParityCase) -> dict[str, Any]:
        """Return the record of one case."""
        found = self.result(case)
        judged = found.judged[case.tap]
        session = self.session(case.pair)
        tap = next(t for t in session.taps if t.name == case.tap)
        assert tap.reference is not None
        assert tap.native is not None
        draws = [d[case.tap] for d in found.draws if case.tap in d]
        under = [w for k, w in session.weights.items() if tap.native.module and k.startswith(tap.native.module + ".")]
        return case_record(
            case_id=case.id,
            pair=case.pair,
            state=case.state,
            judged=judged,
            draws=draws,
            limits=found.limits,
            paths=(tap.reference.path, tap.native.path),
            drift=found.drift.get(case.tap, 0.0),
            first=found.first_different,
            likely=likely_causes(judged, draws[0], under, found.dtypes.get(case.tap, ({}, {}))) if draws else [],
            known=self.known(case) if judged.different and not judged.logic else None,
            order=[t.name for t in session.taps].index(case.tap),
        )

    def state_record(self, case: ParityCase) -> dict[str, Any]:
        """Return what all cases of a pair and state have in common."""
        found = self.result(case)
        tests = sum(j.tests for j in found.judged.values())
        return {
            "pair": case.pair,
            "state": case.state,
            "lora": case.lora,
            "variant": case.variant,
            **self._about[case.pair],
            "tokens": found.tokens,
            "draws": len(found.draws),
            "seed": self.settings.options.seed,
            "twins": self.settings.options.twins,
            "shadow_dtype": str(self.settings.options.shadow_dtype).removeprefix("torch."),
            "observer_effect": found.observer,
            "untrusted_rows": sum(e.excluded for d in found.draws for e in d.values()),
            "rows": sum(e.rows + e.excluded for d in found.draws for e in d.values()),
            "events": dict(found.events),
            "attention": {side: dict(k) for side, k in found.kernels.items()},
            "decisions": found.decisions,
            "flips": dict(found.flips),
            "unmatched_decisions": dict(found.unmatched),
            "first_different": found.first_different,
            "limits": limits_record(found.limits),
            "tests": tests,
            "false_alarm_rate": false_alarm_rate(found.limits, tests),
            "seconds": found.seconds,
        }

    def _remember(self, name: str, session: PairSession) -> None:
        if name not in self._about:
            self._about[name] = about(session)


def about(session: PairSession) -> dict[str, Any]:
    """Describe a loaded pair: what was built, from where, with which weights."""
    pair, build = session.pair, session.build
    return {
        "size": build.size,
        "dtype": str(build.dtype).removeprefix("torch."),
        "device": str(build.device),
        "weights_seed": build.seed,
        "reference": _side(session.reference),
        "native": _side(session.native),
        "substitutes": sorted({*pair.reference.substitutes(), *pair.native.substitutes()}),
        "absent_taps": absent_taps(session.taps),
        "declared": dict(pair.declared),
        "weight_differences": weight_differences(session.weights),
        "stored_weight_rounding": sum(w.finer is not None or w.native_finer for w in session.weights.values()),
        "blind_spots": [*blind_spots("reference", session.reference.model), *blind_spots("native", session.native.model)],
        "lora_targets": 0 if session.adapter is None else len(session.adapter.targets),
    }


def _side(loaded: LoadedSide) -> dict[str, Any]:
    weights = tensors_of(loaded.model)
    dtypes = sorted({str(w.dtype).removeprefix("torch.") for w in weights.values()})
    return {
        "name": loaded.side.name,
        "source": _source(loaded.side),
        "class": type(loaded.model).__qualname__,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "dtypes": dtypes,
        "weights": hash_weights(weights),
    }


def _source(side: Side) -> dict[str, Any]:
    try:
        return dict(describe_source(side.source.module, side.source.distribution, side.source.checkout))
    except ParityError as error:
        return {"module": side.source.module, "unknown": str(error).splitlines()[0]}


def blind_spots(side: str, model: nn.Module) -> list[str]:
    """Say which bugs these weights cannot show: gains all 1, biases all 0, float32 values that bfloat16 holds exactly."""
    named = list(model.named_parameters())
    gains = [p for n, p in named if p.dim() == 1 and n.endswith("weight")]
    biases = [p for n, p in named if n.endswith("bias")]
    wide = [p for _, p in named if p.dtype == torch.float32 and p.numel() > 1]
    found = []
    if gains and all(_all(p, 1.0) for p in gains):
        found.append(f"{side}: all {len(gains)} norm gains are exactly 1: a dropped or misplaced gain cannot show")
    if biases and all(_all(p, 0.0) for p in biases):
        found.append(f"{side}: all {len(biases)} biases are exactly 0: a dropped bias cannot show")
    if wide and all(bool((p == p.bfloat16()).all()) for p in wide):
        found.append(f"{side}: all float32 weights are exactly representable in bfloat16: a down-cast cannot show")
    return found


def _all(parameter: Tensor, value: float) -> bool:
    return bool((parameter == value).all())
