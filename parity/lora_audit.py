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
from parity.execution.shadow import Shadow
from parity.execution.storage import bits
from parity.execution.tap import Inputs
from parity.loaded import LoadedSide, with_lora
from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.effects import Answers, ModuleEffect, effects, probes
from parity.lora.findings import LoraFinding, added, after_switch, findings, left_behind
from parity.lora.varied import varied

ROWS = 4
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
        self.side, self.adapter, self._inputs = side, adapter, inputs
        self.report = SideReport()
        self._paths = _layers(side.model, adapter)
        dtype = _dtype(side.model, adapter)
        self._unit = 2.0 ** (1 - bits(dtype))
        widths = [target.A.shape[1] for target in adapter.targets.values()]
        self._probes = probes([*widths, *self._paths.values()], ROWS, dtype, _device(side.model))
        self._off = self._look(self._ask)

    def _look(self, look: Callable[[], Any], what: str = "layers") -> Any:
        """Look at something; what fails is told and costs no verdict."""
        if self.report.missing:
            return None
        try:
            return look()
        except ParityError as error:
            self.report.missing = f"{what}: {str(error).splitlines()[0]}"
        except Exception as error:  # a layer that cannot be called alone
            self.report.missing = f"{what}: {type(error).__name__}: {str(error)[:120]}"
        return None

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
        unsteady = [path for path, value in answers.on.items() if not _same(value, again[path])]
        for path in unsteady:
            self._paths.pop(path)
        return bool(unsteady)

    def several(self) -> None:
        """Put two adapters on at once, and one after the other; a side that takes one at a time is told."""
        if not self.report.missing and not any(one.severity == "error" for one in self.report.found):
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
        exact = {width: x.double() for width, x in self._probes.items()}
        return Answers(exact, self._off, on, kept or {}, self._unit)

    def _ask(self) -> dict[str, Tensor]:
        """Call every layer alone. Shapes: results [N, O]."""
        shadow = self.side.shadow(Shadow, {"probes": list(self._probes.values())})
        runner = replace(self.side.runner(()), call=self._call, output=lambda out: out)
        out: dict[str, tuple[int, ...]] = {}
        self._shapes = out
        high = runner.run(self._inputs, shadow=shadow).values["final_output"].high
        assert high is not None
        parts = high.split([ROWS * width for (width,) in out.values()])
        return {path: part.reshape(ROWS, -1) for path, part in zip(out, parts, strict=True)}

    def _call(self, model: nn.Module, inputs: Inputs) -> Tensor:
        modules = dict(model.named_modules())
        answers = []
        for path, width in self._paths.items():
            out = modules[path](self._probes[width].unsqueeze(0))
            value = out[0] if isinstance(out, tuple) else out
            self._shapes[path] = (value.shape[-1],)
            answers.append(value.reshape(-1))
        return torch.cat([value.to(torch.float64) for value in answers])


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
    held = [value for path in adapter.targets for value in modules[path].state_dict(keep_vars=True).values()]
    before = [(value, value.detach().clone()) for value in held if isinstance(value, Tensor) and not value.is_meta]
    yield
    with torch.no_grad():
        for value, old in before:
            if not torch.equal(value, old):
                value.copy_(old)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _layers(model: nn.Module, adapter: LoraAdapter) -> dict[str, int]:
    """Return the width of every linear layer: those of the adapter, and those it must leave alone."""
    found = {}
    for path, module in model.named_modules():
        width = _width(module)
        if path in adapter.targets:
            found[path] = adapter.targets[path].A.shape[1]
        elif width is not None and not any(path.startswith(f"{target}.") for target in adapter.targets):
            found[path] = width
    return found


def _width(module: nn.Module) -> int | None:
    weight = getattr(module, "weight", None)
    sizes: Iterator[Any] = (getattr(module, name, None) for name in ("in_features", "input_size"))
    width = next((size for size in sizes if isinstance(size, int)), None)
    whole = isinstance(weight, Tensor) and weight.ndim == 2 and width == weight.shape[1]
    return width if whole and not list(module.children()) else None


def _dtype(model: nn.Module, adapter: LoraAdapter) -> torch.dtype:
    """Return the dtype the targets are called with: that of the first one that has floats to multiply with."""
    modules = dict(model.named_modules())
    held: Sequence[Any] = [getattr(modules.get(path), "weight", None) for path in adapter.targets]
    floats = (w.dtype for w in held if isinstance(w, Tensor) and w.is_floating_point() and w.element_size() > 1)
    return next(floats, torch.float32)


def _device(model: nn.Module) -> torch.device:
    return next(iter((*model.parameters(), *model.buffers()))).device


def _halves(adapter: LoraAdapter) -> tuple[LoraAdapter, LoraAdapter]:
    """Return two adapters on every other layer; of one layer the same twice, another in the second."""
    targets = list(adapter.targets.items())
    if len(targets) > 1:
        return LoraAdapter("first", dict(targets[::2])), LoraAdapter("second", dict(targets[1::2]))
    path, one = targets[0]
    other = LoraTarget(one.A.flip(1), one.B, one.scaling, one.scaling_from)
    return LoraAdapter("first", {path: one}), LoraAdapter("second", {path: other})
