"""An accepted state per device kind: what every case was, and which differences are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parity.errors import UsageError
from parity.known import Known

Scope = tuple[str, str, str]
"""Storage dtype, size and shadow dtype: what must be the same for two states to be compared."""


@dataclass(frozen=True)
class AcceptedCase:
    """What one case was. `excess`: ratio and standard error of its log, by projection; empty where bit-exact."""

    tap: str
    verdict: str
    judged: bool
    logic: bool = False
    precision: str | None = None
    logic_error: float | None = None
    impact: float | None = None
    excess: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def different(self) -> bool:
        """Whether the sides differed."""
        return self.verdict.startswith("different")

    @property
    def exact(self) -> bool:
        """Whether it was bit-exact."""
        return self.verdict == "bit-exact"


@dataclass
class AcceptedState:
    """A pair in one LoRA state: how it was run, when and on what, and its cases by id."""

    pair: str
    state: str
    scope: Scope
    inputs: tuple[int, int, int]
    """Seed, draws, tokens."""
    origin: Mapping[str, str]
    cases: dict[str, AcceptedCase]

    @property
    def key(self) -> tuple[str, str, Scope]:
        """What it is of."""
        return self.pair, self.state, self.scope

    def count(self, what: str) -> int:
        """Count cases that were `judged` or `exact`."""
        return sum(bool(getattr(case, what)) for case in self.cases.values())


@dataclass(frozen=True)
class Suppression:
    """A known difference at some cases of one scope; of logic only where that was said."""

    known: Known
    scope: Scope
    cases: tuple[str, ...]
    logic: bool = False


@dataclass
class DeviceBaseline:
    """The accepted state on one kind of device."""

    states: dict[tuple[str, str, Scope], AcceptedState] = field(default_factory=dict)
    known: list[Suppression] = field(default_factory=list)

    def in_scope(self, pair: str, scope: Scope) -> Iterator[AcceptedState]:
        """Give the states of a pair that can be compared."""
        return (s for s in self.states.values() if s.pair == pair and s.scope == scope)

    def scopes(self, pair: str) -> list[Scope]:
        """List what of a pair was accepted."""
        return sorted({s.scope for s in self.states.values() if s.pair == pair})

    def suppression(self, id: str, scope: Scope) -> Suppression | None:
        """Return what accepts a difference at a case."""
        return next((s for s in self.known if s.scope == scope and id in s.cases), None)


@dataclass
class Baseline:
    """Accepted states by kind of device."""

    devices: dict[str, DeviceBaseline] = field(default_factory=dict)

    def on(self, kind: str, name: str) -> DeviceBaseline:
        """Return the accepted state of a kind of device; `name` is the baseline's, for people.

        Raises:
            UsageError: nothing is accepted for it.
        """
        if kind not in self.devices:
            raise UsageError(
                f"{name} has no accepted state for {kind}\nit has: {', '.join(sorted(self.devices)) or 'none'}\n"
                f"run there, then: parity baseline accept RUN.json -o {name}"
            )
        return self.devices[kind]


def device_kind(device: str, environment: Mapping[str, Any]) -> str:
    """Name what is computed on: another kind rounds otherwise and has a baseline of its own.

    >>> device_kind("cuda:1", {"gpu": "NVIDIA H200", "platform": "linux x86_64"})
    'cuda NVIDIA H200'
    >>> device_kind("cpu", {"gpu": None, "platform": "linux x86_64"})
    'cpu x86_64'
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        return f"cpu {str(environment.get('platform', '')).rpartition(' ')[2] or 'unknown'}"
    return f"{kind} {environment.get('gpu') or ''}".strip()


def scope_of(state: Mapping[str, Any]) -> Scope:
    """Return the scope of a state's record."""
    return str(state["dtype"]), str(state["size"]), str(state["shadow_dtype"])


def is_judged(case: Mapping[str, Any]) -> bool:
    """Say whether a case has a verdict, whatever a gate made of its outcome."""
    return bool(case["verdict"] != "not judged")


def accepted_case(case: Mapping[str, Any]) -> AcceptedCase:
    """Return what a baseline keeps of a case's record; numbers with four digits."""
    exact = case["verdict"] == "bit-exact"
    excess = {} if exact else {
        name: (_short(x["ratio"]), _short(x["se"])) for name, x in case["rounding_excess"].items()
    }  # fmt: skip
    return AcceptedCase(
        tap=str(case["tap"]), verdict=str(case["verdict"]), judged=is_judged(case),
        logic=bool(case["logic"]), precision=case["precision"], logic_error=_maybe(case["logic_error"]),
        impact=_maybe(case["impact"]), excess=excess,
    )  # fmt: skip


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _maybe(value: Any) -> float | None:
    return None if value is None else _short(float(value))


def accepted_state(
    state: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], run: Mapping[str, Any]
) -> AcceptedState:
    """Return what a baseline keeps of a state's record and its cases."""
    around = run["environment"]
    return AcceptedState(
        pair=str(state["pair"]), state=str(state["state"]), scope=scope_of(state), inputs=inputs_of(state),
        origin={
            "created": str(run["created"]), "torch": str(around["torch"]), "parity": str(around["parity"]),
            "cpu": str(around.get("cpu_capability")), "limits": str(run["limits_version"]),
        },
        cases={str(case["id"]): accepted_case(case) for case in cases},
    )  # fmt: skip


def inputs_of(state: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return what says whether two states had the same inputs."""
    return int(state["seed"]), int(state["draws"]), int(state["tokens"])
