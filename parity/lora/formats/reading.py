"""From keys to targets: what the readers of all dialects share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from parity.errors import LoraFileError
from parity.lora.formats.file import LoraFile
from parity.lora.formats.keys import COMPONENTS, Key, underscored
from parity.lora.formats.names import resolved
from parity.lora.formats.scaling import Scale, config_of, from_tensor, number, otherwise
from parity.lora.formats.shapes import check_floats, numel, two_dimensional
from parity.lora.formats.summary import Habits, about_alphas, about_keys
from parity.lora.loaded import Factors, KeyState, LoadedLora, Target
from parity.lora.problems import Problem, error, some

EXTRAS = {"diff", "diff_b", "diff_m", "set_weight", "set_bias", "magnitude"}
SCALARS = ("alpha", "alpha_scale", "rank")
_KNOWN = EXTRAS | {"A", "B", "mid", "lora_bias", *SCALARS}
_DEFINING = {"A", "B", "hada", "lokr", "diff", "diff_b", "diff_m", "set_weight", "multiplied"}
Factorise = Callable[[LoraFile, "Group"], "Pair | None"]


@dataclass
class Group:
    """The keys of one module, by role."""

    module: str
    by_role: dict[str, list[Key]] = field(default_factory=lambda: defaultdict(list))

    def one(self, role: str) -> Key | None:
        """Return the first key of a role."""
        return next(iter(self.by_role.get(role, ())), None)

    def parts(self, role: str) -> list[Key]:
        """Return the keys of a role in the order of their parts."""
        return sorted(self.by_role.get(role, ()), key=lambda key: key.part)


@dataclass(frozen=True)
class Pair:
    """A and B of a module, not yet read; `ranks` are those of the parts where they differ."""

    shape: tuple[int, int]
    r: int
    read: Callable[[], Factors]
    keys: Sequence[Key]
    kernel: tuple[int, ...] = ()
    parts: int = 1
    unscaled: bool = False
    rank: int | None = None
    ranks: tuple[int, ...] = ()
    embedding: bool = False


class Reading:
    """One pass over a file's keys; `result` is what was read."""

    def __init__(self, file: LoraFile, format: str, habits: Habits, keys: Iterable[Key] | None = None) -> None:
        self.file, self.format, self.habits = file, format, habits
        self.keys = tuple(file.keys if keys is None else keys)
        self.states: dict[str, KeyState] = {}
        self.problems: list[Problem] = []
        self._ranks: dict[str, list[str]] = {}
        self.targets: dict[str, Target] = {}
        self.prefix = self._prefix()
        self.config = config_of(file, self.prefix)

    def result(self, factorise: Factorise) -> LoadedLora:
        """Read every module; `factorise` finds A and B among a module's keys."""
        names = self._adapter_names()
        groups: dict[str, Group] = {}
        for key in self.keys:
            if self._belongs(key, names):
                groups.setdefault(key.module, Group(key.module)).by_role[key.role].append(key)
        for group in groups.values():
            self._read(group, factorise)
        self._sum_up()
        targets, problems, unresolved = resolved(self.targets, self._underscored(), self.file.given.modules)
        prefix = self.prefix or self.file.given.prefix or ""
        return LoadedLora(self.format, prefix, targets, self.states, (*self.problems, *problems), unresolved)

    def _underscored(self) -> bool:
        return any(underscored(key) for key in self.keys if key.role in _DEFINING)

    def _prefix(self) -> str:
        given = self.file.given.prefix
        if given is not None:
            return given if any(key.prefix == given for key in self.keys) else ""
        counted = Counter(key.prefix for key in self.keys if key.role in _DEFINING)
        main = [prefix for prefix, _ in counted.most_common() if prefix not in COMPONENTS]
        return next(iter([*main, *counted]), "")

    def _adapter_names(self) -> set[str | None]:
        names = sorted({key.name for key in self.keys if key.name is not None})
        if self.file.given.adapter is not None:
            if self.file.given.adapter not in names:
                text = f"no adapter {self.file.given.adapter!r} in the file; it has {some(names, 6) or 'no names'}"
                raise LoraFileError("unknown_adapter", text)
            return {None, self.file.given.adapter}
        if len(names) > 1:
            text = f"the file holds {len(names)} adapters: {some(names, 6)}; choose one with --adapter"
            self.problems.append(error("several_adapters", text))
        return {None, *names[:1]}

    def _belongs(self, key: Key, names: set[str | None]) -> bool:
        """Give keys of other components, other adapters and unknown roles their state."""
        if key.role == "plain":
            self.states[key.key] = "unexpected"
        elif key.role not in {*_KNOWN, "hada", "lokr"} or key.name not in names:
            self.states[key.key] = "unsupported"
        elif key.prefix != self.prefix:
            self.states[key.key] = "unsupported" if key.prefix in COMPONENTS else "unexpected"
        return key.key not in self.states

    def _read(self, group: Group, factorise: Factorise) -> None:
        try:
            pair = factorise(self.file, group)
            extras = {role: key for role in sorted(EXTRAS) if (key := group.one(role)) is not None}
            self._check_extras(pair, [*extras.values(), *group.by_role.get("lora_bias", ())])
            if pair is not None or extras:
                self.targets[group.module] = self._target(group, pair, extras)
        except LoraFileError as found:
            self.problems.append(error(found.code, f"{group.module}: {found}"))
            self.states |= {key.key: "unsupported" for keys in group.by_role.values() for key in keys}
        left = [key.key for keys in group.by_role.values() for key in keys if key.key not in self.states]
        self.states |= dict.fromkeys(left, "unexpected")

    def _check_extras(self, pair: Pair | None, keys: Sequence[Key]) -> None:
        """Refuse what is no float tensor, or does not fit A and B beside it."""
        for key in keys:
            check_floats(self.file, key)
            shape = self.file.shape(key)
            out, into = pair.shape if pair is not None else (0, 0)
            sizes = {"diff_b": {out}, "lora_bias": {out}, "magnitude": {out, into}}.get(key.role)
            apart = sizes is not None and numel(shape) not in sizes
            if pair is not None and (apart or (key.role == "diff" and two_dimensional(shape) != pair.shape)):
                raise LoraFileError("bad_shape", f"{key.key} is {list(shape)}, A and B change a weight [{out}, {into}]")

    def _target(self, group: Group, pair: Pair | None, extras: dict[str, Key]) -> Target:
        scalars = [key for role in SCALARS if pair and (key := group.one(role)) is not None]
        beside = group.one("lora_bias") if pair else None
        used = [*(pair.keys if pair else ()), *extras.values(), *([beside] if beside else ()), *scalars]
        scale = self._scale(group, pair) if pair else Scale(0.0, 1.0, "assumed")
        self.states |= {key.key: "used" for key in used}
        weight = next((extras[role] for role in ("diff", "set_weight", "diff_m") if role in extras), used[0])
        shape = pair.shape if pair else two_dimensional(self.file.shape(weight))
        rank = (pair.rank or pair.r * pair.parts) if pair else 0
        return Target(
            group.module, shape, pair.r if pair else None, scale.lora_alpha if pair else None, scale.scaling,
            scale.origin, self._factors(group, pair, scale) if pair else None,
            self._extras(extras, beside, scale.scaling),
            pair.kernel if pair else (), pair.parts if pair else 1, self.file.source.info(used[0].key).dtype,
            sum(numel(self.file.shape(key)) for key in used if key not in scalars), rank,
            pair is not None and pair.embedding,
        )  # fmt: skip

    def _extras(self, extras: dict[str, Key], beside: Key | None, scaling: float) -> dict[str, Callable[[], Tensor]]:
        """Return what reads the extras; a bias of B itself, `beside`, is scaled as B is."""
        reads: dict[str, Callable[[], Tensor]] = {role: partial(self.file.tensor, key) for role, key in extras.items()}
        if beside is not None:
            reads["diff_b"] = partial(_bias, partial(self.file.tensor, beside), scaling, reads.get("diff_b"))
        return reads

    def _factors(self, group: Group, pair: Pair, scale: Scale) -> Callable[[], Factors]:
        """Return what reads A and B; where parts have ranks of their own each is scaled by its own alpha / r."""
        wanted = [self._scale_at(group, pair, r).scaling for r in pair.ranks]
        if not scale.scaling or len({*wanted, scale.scaling}) == 1:
            return pair.read

        def read() -> Factors:
            A, B = pair.read()
            factors = [factor / scale.scaling for factor, r in zip(wanted, pair.ranks, strict=True) for _ in range(r)]
            return Factors(A, B.double() * torch.tensor(factors, dtype=torch.float64))

        return read

    def _scale(self, group: Group, pair: Pair) -> Scale:
        self._check_rank(group, max(pair.ranks, default=pair.r))
        return self._scale_at(group, pair, pair.r)

    def _scale_at(self, group: Group, pair: Pair, r: int) -> Scale:
        if pair.unscaled or not self.habits.scaled:
            return Scale(float(r), 1.0, "header" if not self.habits.scaled else "tensor")
        if (key := group.one("alpha_scale")) is not None:
            factor = self._scalar(key)
            return Scale(factor * r, factor, "tensor")
        if (key := group.one("alpha")) is not None:
            return from_tensor(self._scalar(key), r, self.habits.zero_is_rank)
        return otherwise(self.file, self.config, group.module, r)

    def _check_rank(self, group: Group, r: int) -> None:
        declared: dict[str, float] = {key.key: self._scalar(key) for key in group.by_role.get("rank", ())}
        if self.config is not None and (found := self.config.r(group.module)) is not None:
            declared[f"the {self.config.origin}"] = found
        if self.file.given.r is not None:
            declared["the argument"] = self.file.given.r
        for where, wanted in declared.items():
            if int(wanted) != r:
                whose = "its own tensor" if where in {key.key for key in group.by_role.get("rank", ())} else where
                text = f"{group.module}: A has rank {r}, {where} says r = {int(wanted)}"
                self._ranks.setdefault(whose, []).append(text)

    def _scalar(self, key: Key) -> float:
        value = self.file.tensor(key)
        if value.numel() != 1:
            raise LoraFileError("alpha_shape", f"{key.key} has shape {tuple(value.shape)}, one number is needed")
        return number(value.item(), key.key)

    def _sum_up(self) -> None:
        """Say once for the whole file what would be said for each target."""
        for apart in self._ranks.values():
            more = f", and {len(apart) - 1} more" if len(apart) > 1 else ""
            self.problems.append(error("rank_mismatch", f"{apart[0]}{more}"))
        targets = [target for target in self.targets.values() if target.factors is not None]
        self.problems += about_alphas(targets, self.habits, self.file.given.lora_alpha)
        self.problems += about_keys(self.states, self.keys, self.prefix)


def _bias(own: Callable[[], Tensor], scaling: float, other: Callable[[], Tensor] | None) -> Tensor:
    """Return what a layer's bias gains. Shapes: [O]."""
    value = own().flatten() * scaling
    return value if other is None else value + other().flatten()
