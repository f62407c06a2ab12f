"""What a side's own way of loading a LoRA makes of it, layer by layer, before any forward: `LoraAudit`.

Each layer is called alone under a shadow, so that a change far below the rounding of its output is seen exactly.
Letters in shapes: N rows of inputs, I inputs and O outputs of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.errors import ParityError
from parity.execution.tap import Inputs
from parity.loaded import LoadedSide, with_lora
from parity.lora.adapter import LoraAdapter
from parity.lora.effects import Answers, ModuleEffect, effects
from parity.lora.findings import LoraFinding, findings
from parity.lora.full import places
from parity.lora.leftovers import added, after_switch, left_behind
from parity.lora.varied import varied
from parity.lora_probes import LayerProbes
from parity.lora_wanted import Expected, wanted_by_weights

Put = Callable[[LoraAdapter], AbstractContextManager[None]]


@dataclass
class SideReport:
    """What was found on one side.

    Args:
        modules: what the LoRA does to each target.
        found: what is wrong.
        missing: why something was not looked at, "" where all was.
    """

    modules: dict[str, ModuleEffect] = field(default_factory=dict)
    found: list[LoraFinding] = field(default_factory=list)
    missing: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it as a record holds it."""
        return {
            "modules": {path: asdict(effect) for path, effect in self.modules.items()},
            "findings": [one.as_dict() for one in self.found], "missing": self.missing,
        }  # fmt: skip


class LoraAudit:
    """Asks the layers of a side without a LoRA, with it, and after it.

    Args:
        side: the loaded model, without the LoRA.
        adapter: named as the side's modules.
        inputs: what surrounds a call may ask for.
    """

    def __init__(self, side: LoadedSide, adapter: LoraAdapter, inputs: Inputs) -> None:
        self.side, self.adapter = side, adapter
        self.report, self._failed = SideReport(), False
        self._off: dict[str, Tensor] = {}
        self._wanted = Expected()
        self._look(lambda: self._before(inputs))

    def _before(self, inputs: Inputs) -> None:
        self._layers = LayerProbes(self.side, self.adapter, inputs)
        self._off = self._layers.ask()
        self._wanted = wanted_by_weights(self._layers, self.adapter)

    def _look(self, look: Callable[[], Any], what: str = "layers") -> None:
        """Look at something; what fails is told and costs no verdict."""
        if self._failed:
            return
        try:
            look()
        except ParityError as error:
            self.report.missing, self._failed = f"{what}: {str(error).splitlines()[0]}", True
        except Exception as error:  # a layer that cannot be called alone
            self.report.missing, self._failed = f"{what}: {type(error).__name__}: {str(error)[:120]}", True
        else:
            self.report.missing = self.report.missing or self._left_out()

    def _left_out(self) -> str:
        """Return which targets could not be asked, and why the first."""
        out = {path: why for path, why in self._layers.left_out.items() if path in self.adapter.targets}
        if not out:
            return ""
        path, why = next(iter(out.items()))
        return f"{len(out)} of {len(self.adapter.targets)} targets cannot be called alone, {path}: {why}"

    def on(self, kept: Mapping[str, float]) -> None:
        """Look at the layers while the LoRA is on; `kept` is what stored weights hold of it where it was merged."""
        self._look(lambda: self._on(kept))

    def _on(self, kept: Mapping[str, float]) -> None:
        answers = self._answers(self._ask(), kept)
        self.report.modules = effects(self.adapter, answers)
        found = findings(self.side.label, self.adapter, answers)
        if found and self._forget_unsteady(answers):
            found = findings(self.side.label, self.adapter, self._answers(self._ask(), kept))
        self.report.found += found

    def after(self) -> None:
        """Look at the layers once the LoRA is off again."""
        self._look(self._after)

    def _after(self) -> None:
        answers = self._answers(self._ask())
        found = left_behind(self.side.label, answers)
        if found and self._forget_unsteady(answers):
            found = left_behind(self.side.label, self._answers(self._ask()))
        self.report.found += found

    def _forget_unsteady(self, answers: Answers) -> bool:
        """Leave out layers that answer otherwise when asked again: nothing can be said of them. Says whether any."""
        again = self._ask()
        unsteady = [path for path, value in answers.on.items() if path in again and not _same(value, again[path])]
        self._layers.forget(unsteady)
        return bool(unsteady)

    def several(self) -> None:
        """Put two adapters on at once, and one after the other; a side that takes one at a time is told."""
        wrong = any(one.severity == "error" or one.code == "rounded" for one in self.report.found)
        if self.adapter.targets and not self._failed and not wrong:
            for look, what in ((self._switched, "a switch of adapters"), (self._added, "two adapters at once")):
                with _weights_kept(self.side.model, self.adapter):
                    self._look(look, what)

    def _switched(self) -> None:
        first, second = _halves(self.adapter)
        switch = getattr(self.side.side.apply_lora, "switch", None)
        with ExitStack() as stack:
            old = stack.enter_context(with_lora(self.side, first))
            if switch is not None:
                stack.enter_context(switch(self.side.model, second))
            else:
                stack.close()
                stack.enter_context(with_lora(self.side, second))
            answers = self._answers(self._ask(), old)
        self.report.found += after_switch(self.side.label, first, second, answers)

    def _added(self) -> None:
        second = varied(self.adapter, [min(t.rank for t in self.adapter.targets.values())], 1.0, seed=3)
        if not getattr(self.side.side.apply_lora, "several", True):
            return
        with with_lora(self.side, self.adapter), with_lora(self.side, second):
            answers = self._answers(self._ask())
        self.report.found += added(self.side.label, [self.adapter, second], answers)

    def _answers(self, on: Mapping[str, Tensor], kept: Mapping[str, float] | None = None) -> Answers:
        layers = self._layers
        known = self._wanted
        return Answers(
            layers.exact, self._off, on, kept or {}, layers.unit, known.wanted, known.doubts, known.directions
        )

    def _ask(self) -> dict[str, Tensor]:
        return self._layers.ask()


@contextmanager
def audited(
    sides: Sequence[tuple[LoadedSide, LoraAdapter]], reports: dict[str, SideReport], inputs: Callable[[], Inputs]
) -> Iterator[None]:
    """Put a LoRA on sides, each named as its own; the first time, look at what it does to them into `reports`."""
    audits = [] if reports else [LoraAudit(side, adapter, inputs()) for side, adapter in sides]
    reports.update({audit.side.label: audit.report for audit in audits})
    with ExitStack() as stack:
        kept = {side.label: stack.enter_context(with_lora(side, adapter)) for side, adapter in sides}
        for audit in audits:
            audit.on(kept[audit.side.label])
        yield
    for audit in audits:
        audit.after()
        audit.several()


@contextmanager
def _weights_kept(model: nn.Module, adapter: LoraAdapter) -> Iterator[None]:
    """Put the targets' tensors back at the end: what is found wrong with a switch shall not be in later runs."""
    modules = dict(model.named_modules())
    paths = {*adapter.targets, *(place.path for place in places(model, adapter).values())}
    held = [value for path in paths for value in modules[path].state_dict(keep_vars=True).values()]
    before = [(value, value.detach().clone()) for value in held if isinstance(value, Tensor) and not value.is_meta]
    yield
    with torch.no_grad():
        for value, old in before:
            if not torch.equal(value, old):
                value.copy_(old)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _halves(adapter: LoraAdapter) -> tuple[LoraAdapter, LoraAdapter]:
    """Return two adapters on every other layer; of one layer the same twice, another in the second.

    What is changed in full is of the first alone: nothing of it may be left after a switch.
    """
    targets = list(adapter.targets.items())
    if len(targets) > 1:
        return LoraAdapter("first", dict(targets[::2]), adapter.changes), LoraAdapter("second", dict(targets[1::2]))
    path, one = targets[0]
    other = replace(one, A=one.A.flip(1))
    return LoraAdapter("first", {path: one}, adapter.changes), LoraAdapter("second", {path: other})
