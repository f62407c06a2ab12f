"""Fixtures: a pair on drawn inputs, and the response of both sides to a change of each input."""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pytest

from parity.errors import ParityError, SourceMissing
from parity.plugin.check import fail, rerun_of, warn
from parity.plugin.options import drawn_given
from parity.report.drawn import drawn_text, imprecise_text, input_record, sensitivity_text
from parity.report.wording import error_text

if TYPE_CHECKING:  # torch and hypothesis come with these; see the package
    from parity.case import ParityCase
    from parity.engine import Engine
    from parity.explored import Explored
    from parity.sensitivity import Response
    from parity.session import PairSession
    from parity.strategies import Profile

T = TypeVar("T")
_SENSITIVITIES = pytest.StashKey[dict[str, Any]]()


class _Check:
    """What both checks need: the pair's session, and how a test ends, which goes into the record."""

    def __init__(self, request: pytest.FixtureRequest, engine: Engine) -> None:
        self._config, self._node, self._engine = request.config, request.node, engine
        self._found: dict[str, Any] = {}

    def _tried(self, case: ParityCase, compute: Callable[[], T]) -> T:
        """Compute something; a missing source skips the test, another error fails it in five lines."""
        try:
            return compute()
        except ParityError as error:
            problem = error
        reasons = str(problem).splitlines()
        if not isinstance(problem, SourceMissing):
            self._fail(case, error_text({"id": case.id, "reasons": reasons}, self._rerun()), reasons, "error")
        if case.pair in self._config.getoption("--parity-require"):
            self._fail(case, f"{case.pair} is required and not here: {problem}", reasons, "error")
        self._record(case, "skipped", reasons)
        pytest.skip(str(problem))

    def _rerun(self, extra: str = "") -> str:
        return rerun_of(self._config, self._node.nodeid) + extra

    def _record(self, case: ParityCase, outcome: str, reasons: Sequence[str] = ()) -> None:
        """Send what came of the case to who writes the record, in this process or, under xdist, in another."""
        name = case.tap.partition(".")[2]
        record = input_record(
            case_id=case.id, pair=case.pair, state=case.state, name=name, outcome=outcome, reasons=reasons,
            found=self._found,
        )  # fmt: skip
        told = "failed" if outcome == "error" else outcome
        self._node.user_properties += [("parity_outcome", told), ("parity_input", json.dumps(record))]

    def _fail(self, case: ParityCase, text: str, reasons: Sequence[str], outcome: str = "failed") -> NoReturn:
        self._record(case, outcome, reasons)
        fail(text)

    def _not_judged(self, case: ParityCase, why: str) -> NoReturn:
        self._record(case, "not judged", [why])
        pytest.skip(f"not judged: {why}")


@pytest.fixture
def parity_drawn(request: pytest.FixtureRequest, parity_engine: Engine) -> Any:
    """Return the check of one pair and LoRA state on drawn inputs."""
    return _DrawnCheck(request, parity_engine)


class _DrawnCheck(_Check):
    def __call__(self, case: ParityCase) -> None:
        from parity.explored import explored

        session, profile = self._session(case), self._profile(case)
        only = drawn_given(self._config)
        options = self._engine.settings.options
        found = self._tried(case, lambda: explored(session, case.lora, options, profile, only))
        self._node.user_properties.append(("parity_drawn", json.dumps([repr(e.drawn) for e in found.examples])))
        failing = None if found.failing is None else repr(found.failing.drawn)
        self._found = {"run": len(found.examples), "judged": found.judged, "failing": failing}
        self._end(case, found, self._repeated(profile, only))

    def _session(self, case: ParityCase) -> PairSession:
        from parity.session import PairSession

        session = self._tried(case, lambda: self._engine.session(case.pair))
        if not isinstance(session, PairSession) or session.recorded is not None:
            self._not_judged(case, "inputs are drawn with both models in memory: pass --parity-residency=together")
        return session

    def _profile(self, case: ParityCase) -> Profile:
        from parity.strategies import Profile, default_profile

        option = self._config.getoption
        name = option("--parity-profile") or default_profile()
        seed = option("--parity-seed")
        remembers = "" if seed else case.id
        return Profile(option("--parity-examples"), name, seed or secrets.randbelow(10**6) + 1, remembers)

    def _repeated(self, profile: Profile, only: Any) -> str:
        """Word what draws the same inputs again."""
        if only:
            return "".join(f" --parity-drawn={shlex.quote(repr(d))}" for d in only)
        told = profile.name == "ci" or self._config.getoption("--parity-seed")
        seeded = "" if told else f" --parity-seed={profile.seed}"
        return f" --parity-profile={profile.name} --parity-examples={profile.examples}{seeded}"

    def _end(self, case: ParityCase, found: Explored, repeated: str) -> None:
        if (e := found.failing) is not None:
            again = self._rerun(f" --parity-drawn={shlex.quote(repr(e.drawn))}")
            wrong = f"{e.wrong} at {e.tap}" if e.tap else e.wrong
            counts = (sum(bool(x.wrong) for x in found.examples), len(found.examples))
            place = found.native_paths.get(e.tap, "")
            self._fail(case, drawn_text(case.id, repr(e.drawn), wrong, place, counts, again), [wrong])
        if found.imprecise:
            worst = found.imprecise[0]
            place = found.native_paths[worst.name]
            text = imprecise_text(case.id, worst.name, worst.reasons, place, found.judged, self._rerun(repeated))
            if found.felt:
                self._fail(case, text, worst.reasons)
            warn(text)
        if not found.judged:
            why = found.examples[0].refused or "no trusted shadow"
            self._not_judged(case, f"none of {len(found.examples)} inputs: {why}")
        if found.blind:
            self._not_judged(case, f"{len(found.blind)} taps in no input, first {found.blind[0]}")
        self._record(case, "warned" if found.imprecise else "passed", [r for j in found.imprecise for r in j.reasons])


@pytest.fixture
def parity_sensitivity(request: pytest.FixtureRequest, parity_engine: Engine) -> Any:
    """Return the check of both sides' response to a change of one input."""
    return _SensitivityCheck(request, parity_engine)


class _SensitivityCheck(_Check):
    def __call__(self, case: ParityCase) -> None:
        name = case.tap.removeprefix("input.")
        ignored = self._engine.pairs[case.pair].ignored.get(name)
        responses = self._responses(case, name)
        self._found = {"responses": [asdict(r) for r in responses]}
        wrong = next((r for r in responses if r.wrong), None)
        if wrong is not None and ignored is None:
            sides = (wrong.reference, wrong.native)
            text = sensitivity_text(case.id, name, wrong.wrong, wrong.change, sides, self._rerun())
            self._fail(case, text, [f"{wrong.change}: {wrong.wrong}"])
        if wrong is not None:
            self._record(case, "known", [f"declared: {ignored}"])
            pytest.xfail(f"declared: {ignored}")
        if ignored is not None:
            text = f"{case.id}: {name!r} is declared ignored, but both sides read it"
            warn(text)
        if not any(r.judged for r in responses):
            self._not_judged(case, "; ".join(r.change for r in responses))
        self._record(case, "passed")

    def _responses(self, case: ParityCase, name: str) -> list[Response]:
        from parity.sensitivity import Sensitivity

        session = self._tried(case, lambda: self._engine.session(case.pair))
        if not Sensitivity.is_possible(session):
            self._not_judged(case, "a recording takes no changed inputs: run where both sides can be loaded")
        held = self._config.stash.setdefault(_SENSITIVITIES, {})
        if case.pair not in held:
            shadow_dtype = self._engine.settings.options.shadow_dtype
            held[case.pair] = self._tried(case, lambda: Sensitivity(session, shadow_dtype))
        found: list[Response] = self._tried(case, lambda: held[case.pair].of(name))
        return found
