"""Names of taps, in the field's vocabulary."""

from __future__ import annotations

import re

from parity.scaffold.names import words_of
from parity.scaffold.points import Shared

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPELT = {str(number): word for number, word in enumerate(_NUMBERS)}
"""Numbers in names that are no block numbers."""


def after_blocks(found: Shared, last: int | None) -> bool:
    """Say whether a point lies behind the last block: by the order of a run, else by its name."""
    return "final" in _all_words(found) if last is None or found.value is None else found.order > last


def layer_name(found: Shared, r: str, n: str) -> str | None:
    """Return the name of a layer inside a block; None for what gets no tap."""
    is_input = found.reference.at == "input"
    if not r and not n:
        return None if is_input else ""
    if not r or not n or (found.quiet and not is_input):
        return None
    if found.quiet:
        return "_residual"
    if _inside_attention(_last(r), _last(n), is_input):
        return None
    words = {w for path in (r, n) for w in words_of(path.split(".")[0])}
    kinds = {"ffn": "ffn", "cross": "cross_attn", "attn": "self_attn", "mod": "modulation"}
    if _is_part(found) and {"norm", "mod"} & words:
        return "modulation"  # a gate, a shift or a scale beside what is normalised
    kind = next((kind for word, kind in kinds.items() if word in words), plain(n.split(".")[0]))
    deep = max(r.count("."), n.count(".")) > 0 and not (set(words) & set(kinds))
    if deep or (is_input and kind == "modulation"):
        return None
    return f"{kind}_in" if is_input else kind


def _is_part(found: Shared) -> bool:
    """Say whether a value is returned beside another one."""
    return any(p.at == "output" and p.element not in (None, "0") for p in (found.reference, found.native))


def _inside_attention(r: str, n: str, is_input: bool) -> bool:
    """Say whether a point is a projection's result, or what the last projection is given: the attention has taps."""
    wanted = {"out"} if is_input else {"q", "k", "v", "qkv", "kv"}
    return all(wanted & set(words_of(name)) for name in (r, n))


def outside_name(found: Shared, final: bool) -> str | None:
    """Return the name of a point outside blocks; None for what gets no tap. `final`: it lies behind the blocks."""
    r, n = (words_of(_last(p.module or "")) for p in (found.reference, found.native))
    words, path = {*r, *n}, _all_words(found)
    if found.reference.at == "input":
        return _outside_input(found, path, final)
    if found.quiet:
        return None
    if final:
        return "final_modulation" if "mod" in words else "final_layer"
    if "time" in words and "embed" in words | path:
        return "time_embed" if "embed" in words else plain(_last(found.native.module or ""))
    named = {"patch": "patch_embed", "text": "caption_embed", "guidance": "guidance_embed"}
    own = plain(_last(found.native.module or ""))
    return next((name for word, name in named.items() if word in words | path), own)


def _all_words(found: Shared) -> set[str]:
    paths = (found.reference.module or "", found.native.module or "")
    return {word for path in paths for part in path.split(".") for word in words_of(part)}


def _outside_input(found: Shared, path: set[str], final: bool) -> str | None:
    if found.quiet or found.reference.element or found.native.element:
        return None
    if "mod" in path:
        return None
    if final:
        return "final_layer_in"
    if "time" not in path or not {"embed"} & path:
        return None
    return "timestep" if found.value is not None and found.value.value.dim() < 2 else "time_sinusoid"


def _last(path: str) -> str:
    return next((part for part in reversed(path.split(".")) if words_of(part)), path.rpartition(".")[2])


def plain(name: str) -> str:
    """Return a name of lower-case letters and underscores: numbers are for blocks."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    spelt = re.sub(r"_?(\d)", lambda found: f"_{SPELT[found[1]]}", spaced)
    return re.sub(r"[^a-z_]+", "_", spelt).strip("_") or "value"
