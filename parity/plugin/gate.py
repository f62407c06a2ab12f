"""The gate in a pytest run: each case is held against the accepted state as it comes, the run at its end."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from parity.errors import UsageError
from parity.plugin.cases import cases_of, engine_of
from parity.plugin.partial import Selection

if TYPE_CHECKING:  # torch comes with these; see the package
    from parity.gate.baseline import DeviceBaseline, Scope
    from parity.gate.findings import Gated, Terms

_GATE = pytest.StashKey["Gate | None"]()


def gate_of(config: pytest.Config) -> Gate | None:
    """Return the gate of the run, None where no baseline was named.

    Raises:
        ParityError: the baseline is not usable, or not of this kind of device or these settings.
    """
    if _GATE not in config.stash:
        file = config.getoption("--parity-baseline")
        if config.getoption("--parity-require-exact") and not file:
            raise UsageError("--parity-require-exact needs a baseline: pass --parity-baseline FILE")
        config.stash[_GATE] = None if file is None else Gate(config, str(file))
    return config.stash[_GATE]


class Gate:
    """Holds what a run finds against the accepted state of this kind of device."""

    def __init__(self, config: pytest.Config, file: str) -> None:
        from parity.environment import describe_environment
        from parity.gate.baseline import device_kind
        from parity.io.baselines import read_baseline

        self._config, self.file = config, file
        self._engine = engine_of(config)
        baseline = read_baseline(config.invocation_params.dir / file)
        self.kind = device_kind(str(self._engine.settings.device), describe_environment())
        self.device: DeviceBaseline = baseline.on(self.kind, file)
        self._check_scopes()

    @cached_property
    def scopes(self) -> dict[str, Scope]:
        """What each pair that was asked for is run as."""
        shadow = str(self._engine.settings.options.shadow_dtype).removeprefix("torch.")
        builds = {name: self._engine.settings.build(pair) for name, pair in self._engine.pairs.items()}
        return {name: (str(b.dtype).removeprefix("torch."), b.size, shadow) for name, b in builds.items()}

    @cached_property
    def terms(self) -> Terms:
        """What the gate is asked for."""
        from parity.gate.findings import Terms
        from parity.known import today

        return Terms(today(), bool(self._config.getoption("--parity-require-exact")))

    def _check_scopes(self) -> None:
        """Check that pairs the baseline has were accepted as they are run now: else nothing would be compared.

        Raises:
            UsageError: one was not.
        """
        for name, scope in self.scopes.items():
            known = self.device.scopes(name)
            if known and scope not in known:
                has = "; ".join(" ".join(one) for one in known)
                raise UsageError(
                    f"{self.file} has {name} as {has}, this run is {' '.join(scope)} (dtype, size, shadow)\n"
                    f"run it as it was accepted, or accept a run of it: parity baseline accept RUN.json -o {self.file}"
                )

    def case(self, record: dict[str, Any], state: Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
        """Hold a case against the baseline; return its record as it is now, and what fails it here, "" for nothing."""
        from parity.gate.findings import judge_case

        judged, found = judge_case(record, state, self.device, self.terms, self.scopes[record["pair"]])
        return judged, next((f.text for f in found if f.fails), "")

    def said(self, gated: Gated) -> dict[str, Any]:
        """Return what the run's record keeps."""
        return gated.as_dict(self.file, self.kind)

    def run(self, record: Mapping[str, Any], selection: Selection) -> Gated:
        """Hold the run against the baseline."""
        from parity.gate.whole import judge_run

        existing = {case.id for case in cases_of(self._config)}
        left_out = existing if selection.unlisted else selection.left_out
        option = self._config.getoption
        others = None if option("--parity-pair") or option("--parity-pairs") else True
        return judge_run(record, self.device, self.terms, self.scopes, existing, left_out, others)
