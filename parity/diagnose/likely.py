"""The likely cause of a difference, from evidence that needs no statistics: dtypes, stored weights, NaN."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from parity.diagnose.explained import Explained
from parity.numerics.evidence import Evidence
from parity.numerics.verdict import Judged
from parity.weights.load import WeightComparison

_KINDS = {
    "linear": ("addmm", "mm", "bmm", "linear", "convolution", "baddbmm"),
    "normalisation": ("native_layer_norm", "rsqrt", "mean", "var_mean", "_fused_rms_norm", "var", "pow"),
    "modulation and residual arithmetic": ("mul", "add", "sub", "addcmul"),
    "activation": ("silu", "gelu", "sigmoid", "tanh", "_softmax"),
    "trigonometric": ("cos", "sin", "exp"),
}
_APART = "torch adds a linear layer's bias in a second op where its input is not contiguous: `.contiguous()` before it"
_WIDTH = {"float64": 3, "float32": 2, "complex64": 2, "complex128": 3, "float16": 1, "bfloat16": 1}


def likely_causes(
    judged: Judged, evidence: Evidence, weights: Sequence[WeightComparison],
    dtypes: tuple[Mapping[str, int], Mapping[str, int]], explained: Explained,
) -> list[str]:  # fmt: skip
    """Return what probably causes a difference at a tap, most certain first; at most three.

    Args:
        judged: the verdict.
        evidence: of the first draw.
        weights: wrong weights under the native's module at the tap, where it is not known what the segment reads.
        dtypes: in which dtypes each side ran the segment's ops.
        explained: what a second look found.
    """
    if not judged.different:
        return []
    nearest, place = explained.nearest.get(judged.name), explained.places.get(judged.name)
    found = _weights(explained.wrong.get(judged.name, weights))
    if judged.name in explained.repairs:
        found.append(explained.repairs[judged.name].sentence())
    if nearest is not None and nearest.explains:
        found.append(nearest.words())
        found += [_APART] if nearest.kind == "split" else []
    found += [words for _, words in explained.signatures.get(judged.name, [])[:1]]
    if place is not None:
        found += place.words()
    if evidence.reference_dtype != evidence.native_dtype:
        found.append(_dtype(evidence))
    told = judged.logic or (nearest is not None and nearest.explains) or (place is not None and bool(place.dtypes))
    if not told:
        found += _precision(*dtypes)
    return list(dict.fromkeys(found))[:3]


def _weights(weights: Sequence[WeightComparison]) -> list[str]:
    wrong = [w for w in weights if w.differs]
    if not wrong:
        return []
    swapped = [f"{w.native_key} holds what should be {w.swapped_with}" for w in wrong if w.swapped_with]
    text = ", ".join(swapped[:2]) or f"{wrong[0].native_key} differs by {wrong[0].rel_l2:.1e}"
    return [f"weights, not code: {text}"]


def _dtype(evidence: Evidence) -> str:
    text = f"the value is {evidence.native_dtype} in the native, {evidence.reference_dtype} in the reference"
    if evidence.rounded is not None and 0.9 < evidence.rounded < 1.1:
        text += " (no other difference: rounding both to the coarser gives the same precision)"
    return text


def _precision(reference: Mapping[str, int], native: Mapping[str, int]) -> list[str]:
    """Compare in which dtypes the two sides ran each kind of op in the segment."""
    if by_hand := _by_hand(reference, native):
        return [by_hand]
    out = []
    for kind, ops in _KINDS.items():
        r, n = _widths(reference, ops), _widths(native, ops)
        if r and n and _most(r) != _most(n):
            out.append(f"{kind} runs in {_most(n)} in the native, in {_most(r)} in the reference")
        elif r and n and (lost := _only(r, n)):
            out.append(f"{kind}: the reference runs {lost}")
    return out


def _by_hand(reference: Mapping[str, int], native: Mapping[str, int]) -> str:
    """Say that only one side takes a softmax of its own in 16 bits where the other calls a fused kernel."""
    sides = (native, reference, ("native", "reference")), (reference, native, ("reference", "native"))
    for here, there, words in sides:
        low = [d for d in _widths(here, ("_softmax", "_safe_softmax")) if _WIDTH[d] == 1]
        fused = any(key.startswith("_scaled_dot_product") for key in there)
        if low and fused and not _widths(there, ("_softmax", "_safe_softmax")):
            kernel = f"the {words[1]} calls a fused kernel, which keeps scores in float32"
            return f"attention by hand: the softmax runs in {low[0]} in the {words[0]}, {kernel}"
    return ""


def _widths(counts: Mapping[str, int], ops: Sequence[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for key, number in counts.items():
        op, dtype = key.rsplit(" ", 1)
        if op in ops and dtype in _WIDTH:
            found[dtype] += number
    return found


def _most(counts: Counter[str]) -> str:
    """Return the widest dtype the ops ran in: an island is a few wide ops among many narrow ones."""
    return max(counts, key=lambda d: (_WIDTH[d], d))


def _only(reference: Counter[str], native: Counter[str]) -> str:
    wide = [d for d in reference if _WIDTH[d] > 1 and reference[d] > native.get(d, 0) + 1]
    if not wide:
        return ""
    return f"{reference[wide[0]] - native.get(wide[0], 0)} more ops in {wide[0]}"
