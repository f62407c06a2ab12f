"""The shape of a record: every field of its type and size, whoever wrote the file.

What comes out holds known fields only, long texts and lists cut short, so that what shows a record need not ask again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from parity.errors import RecordError
from parity.numerics.verdict import VerdictClass
from parity.report.record import SCHEMA

Kind = Callable[[Any, str], Any]
"""From a value and where it stands to the value as it is shown; raises `RecordError`."""

LONGEST, MOST, MOST_CASES = 4000, 200, 50_000
"""Characters of a text, items of a list, cases of a record."""
OUTCOMES = ("failed", "error", "warned", "known", "passed", "not judged", "skipped")
VERDICTS = tuple(c.value for c in VerdictClass)
_DEEPEST = 6


def well_formed(record: Mapping[str, Any], file: str = "record") -> dict[str, Any]:
    """Return a record with every field of its type; fields an older record lacks are empty.

    Args:
        record: as it was read.
        file: what it is called in errors.

    Raises:
        RecordError: a field is of another type, or there are more cases than can be shown; names it.
    """
    if record.get("schema") != SCHEMA:
        raise RecordError(f"{file} has the schema {str(record.get('schema'))[:40]!r}, {SCHEMA!r} is needed")
    cases = record.get("cases")
    if isinstance(cases, list) and len(cases) > MOST_CASES:
        raise RecordError(f"{file} has {len(cases):,} cases, {MOST_CASES:,} can be shown: select some with -k")
    found: dict[str, Any] = _RECORD(record, file)
    return _with_effects(found)


def _with_effects(record: dict[str, Any]) -> dict[str, Any]:
    """Give each case its row of its state's `lora_comparison` as `lora_effect`, None where there is none."""
    rows = {(s["pair"], s["state"], row["tap"]): row for s in record["pairs"] for row in s["lora_comparison"]}
    for case in record["cases"]:
        row = rows.get((case["pair"], case["state"], case["tap"]), {})
        case["lora_effect"] = {k: v for k, v in row.items() if k != "tap" and v is not None} or None
    return record


def text(value: Any, where: str) -> str:
    """Take a text."""
    if not isinstance(value, str):
        raise _wrong(value, where, "a text")
    return value if len(value) <= LONGEST else value[:LONGEST] + " ... (cut short)"


def number(value: Any, where: str) -> int | float:
    """Take a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(value, where, "a number")
    return value


def flag(value: Any, where: str) -> bool:
    """Take a truth value."""
    if not isinstance(value, bool):
        raise _wrong(value, where, "true or false")
    return value


def anything(value: Any, where: str) -> Any:
    """Take what is only ever shown as text, cut short."""
    return _cut(value, _DEEPEST)


def one_of(*names: str) -> Kind:
    """Take one of these words."""

    def take(value: Any, where: str) -> str:
        if value not in names:
            raise _wrong(value, where, "one of " + ", ".join(names))
        return str(value)

    return take


def maybe(kind: Kind) -> Kind:
    """Take a value or null."""
    return lambda value, where: None if value is None else kind(value, where)


def listed(kind: Kind, most: int = MOST) -> Kind:
    """Take a list, its first items."""

    def take(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong(value, where, "a list")
        return [kind(item, f"{where}[{n}]") for n, item in enumerate(value[:most])]

    return take


def named(kind: Kind) -> Kind:
    """Take a mapping from names to values of one kind."""

    def take(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(value, where, "an object")
        return {str(k)[:LONGEST]: kind(v, f"{where}.{str(k)[:40]}") for k, v in list(value.items())[:MOST]}

    return take


def fields(kinds: Mapping[str, tuple[Kind, Any]], needed: tuple[str, ...] = ()) -> Kind:
    """Take an object of these fields; those it lacks and does not need have their default."""

    def take(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(value, where, "an object")
        if missing := [name for name in needed if name not in value]:
            raise RecordError(f"{where} has no {missing[0]!r}: it was written by something else")
        return {n: kind(value[n], f"{where}.{n}") if n in value else default for n, (kind, default) in kinds.items()}

    return take


def limited(kind: Kind, *names: str) -> Kind:
    """Take an object whose numbers of these names come with their limits: `impact` with `impact_limit`."""

    def take(value: Any, where: str) -> dict[str, Any]:
        found: dict[str, Any] = kind(value, where)
        for name in names:
            limit = f"{name.removesuffix('_error')}_limit"
            if found[name] is not None and found[limit] is None:
                raise RecordError(f"{where}.{limit} is missing: it was written by something else")
        return found

    return take


def _cut(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return text(value, "")
    if isinstance(value, Mapping):
        kept = list(value.items())[:MOST]
        return {str(k)[:LONGEST]: _cut(v, depth - 1) for k, v in kept} if depth else "..."
    if isinstance(value, list):
        return [_cut(v, depth - 1) for v in value[:MOST]] if depth else "..."
    return value


def _wrong(value: Any, where: str, wanted: str) -> RecordError:
    return RecordError(f"{where} is {str(value)[:40]!r}, {wanted} is needed: it was written by something else")


def _each(kind: Kind, default: Any, *names: str) -> dict[str, tuple[Kind, Any]]:
    """Name several fields of one kind."""
    return dict.fromkeys(names, (kind, default))


_NUMBER, _TEXT, _TEXTS = maybe(number), maybe(text), listed(text)
_LINES = listed(listed(text, 4), 16)
_ALONG = fields(
    {"count": (number, 0), "native": (listed(number), []), "reference": (listed(number), []),
     "mean": (listed(number), []), "reference_mean": (listed(number), [])}
)  # fmt: skip
_RESIDUAL = fields({
    "of": (text, ""), "scale": (_NUMBER, None), "tokens": (_ALONG, None), "channels": (_ALONG, None),
    "histogram": (fields({"edge": (number, 1.0), "native": (listed(number), []), "reference": (listed(number), [])}),
                  None),
}, ("tokens", "channels", "histogram"))  # fmt: skip
_PLACE = fields({
    "native": (_TEXT, None), "reference": (_TEXT, None), "dtypes": (_LINES, []), "notes": (_TEXTS, []),
    "code": (fields({"native": (_LINES, []), "reference": (_LINES, [])}), {"native": [], "reference": []}),
})  # fmt: skip
_CASE = limited(fields({
    **_each(text, "", "id", "pair", "state", "tap", "shown_by", "rerun"),
    **_each(_TEXT, None,
        "reference_path", "native_path", "known", "precision", "first_different", "reference_dtype", "native_dtype",
    ),
    **_each(_NUMBER, None,
        "logic_error", "logic_limit", "logic_error_of_constants", "impact", "impact_limit", "drift",
        "excess_after_rounding_both", "coherence", "reference_noise",
    ),
    "verdict": (one_of(*VERDICTS), ""), "outcome": (one_of(*OUTCOMES), ""), "order": (number, 0),
    "logic": (flag, False), "amber": (flag, False), "reasons": (_TEXTS, []), "likely": (_TEXTS, []),
    "nearest": (maybe(fields({"words": (text, ""), "ratio": (_NUMBER, None), "bit_exact": (flag, False),
                              "explains": (flag, False), "elements": (_NUMBER, None)})), None),
    "repair": (maybe(fields({"words": (text, ""), "logic_error_before": (_NUMBER, None),
                             "logic_error_after": (_NUMBER, None)})), None),
    "place": (maybe(_PLACE), None), "signatures": (_LINES, []),
    "rounding_excess": (named(fields({"ratio": (number, 1.0), **_each(_NUMBER, None, "se", "freedom")})), {}),
    "rows": (listed(number), []), "excluded_rows": (listed(number), []), "metrics": (maybe(named(anything)), None),
    "residual": (maybe(_RESIDUAL), None), "dtypes": (maybe(named(named(number))), None),
}, ("id", "pair", "state", "tap", "verdict", "outcome")), "logic_error", "impact")  # fmt: skip
_SIDE = fields({
    **_each(text, "", "name", "class", "weights"), "parameters": (_NUMBER, None), "dtypes": (_TEXTS, []),
    "source": (named(anything), {}),
})  # fmt: skip
_WEIGHTS = fields({
    **_each(_NUMBER, None, "compared", "equal", "rounded", "different"),
    **_each(named(anything), {}, "reference_only", "native_only"),
})  # fmt: skip
_FOUR = fields({
    "tap": (text, ""),
    **_each(_NUMBER, None, "base", "lora", "on_reference", "on_native", "ratio", "alignment", "of_effect"),
}, ("tap",))  # fmt: skip
_STATE = fields({
    **_each(text, "",
        "pair", "state", "variant", "size", "dtype", "device", "shadow_dtype", "explained_missing",
    ),
    **_each(_NUMBER, None,
        "weights_seed", "seed", "draws", "twins", "tokens", "untrusted_rows", "rows", "decisions", "tests",
        "false_alarm_rate", "lora_targets", "stored_weight_rounding", "peak_memory_bytes",
    ),
    **_each(_TEXTS, [],
        "substitutes", "observer_effect", "weight_differences", "blind_spots", "shared_code", "known_unused",
        "finer_weights", "compiled_apart",
    ),
    **_each(named(anything), {},
        "absent_taps", "declared", "events", "flips", "unmatched_decisions", "reference_from", "limits", "compiled",
    ),
    "seconds": (named(number), {}), "lora": (flag, False), "first_different": (_TEXT, None),
    "reference": (_SIDE, _SIDE({}, "")), "native": (_SIDE, _SIDE({}, "")), "weights": (_WEIGHTS, _WEIGHTS({}, "")),
    "attention": (named(named(anything)), {}), "lora_comparison": (listed(_FOUR, MOST_CASES), []),
}, ("pair", "state"))  # fmt: skip
_RECORD = fields({
    "created": (text, ""), "complete": (flag, True), "selected": (flag, False), "limits_version": (_NUMBER, None),
    "environment": (named(anything), {}), "pairs": (listed(_STATE, MOST_CASES), []),
    "cases": (listed(_CASE, MOST_CASES), []),
}, ("created", "pairs", "cases"))  # fmt: skip
