"""Which trials are run: every plant, at every place, in every pair, dtype and kind of input, dealt out so that each
property is met by each plant and the whole fits into half an hour.
"""

from __future__ import annotations

from benchmarks.detect.pairs import BUNDLED, REAL, missing
from benchmarks.detect.trials import SITES, Trial, dtype_of, in_blocks
from fixtures.mutations import MUTATIONS
from fixtures.plants import PLANTS
from parity.diagnose.signature import SIGNATURES

PLACES = ("first", "middle", "last", "all")
DTYPES = ("float32", "bfloat16")


def trials() -> list[Trial]:
    """List all trials, those of one reference together."""
    found = [*_of_pair(BUNDLED), *_bundled_plants()]
    for pair in REAL:
        found += [] if missing(pair) else _of_pair(pair)
    order = (BUNDLED, *REAL)
    return sorted(dict.fromkeys(found), key=lambda t: (order.index(t.pair), *map(str, t.group)))


def _of_pair(pair: str) -> list[Trial]:
    """Deal places, sites, dtypes and inputs out over the plants; the bundled pair has them all."""
    found = []
    for number, name in enumerate(SIGNATURES.names()):
        found += _signature(pair, name, number)
    for number, (name, m) in enumerate(MUTATIONS.items()):
        places = PLACES if m.in_block else ("",)
        dtypes = [d for d in DTYPES if dtype_of(d) in m.dtypes]
        found += _dealt("mutation", name, pair, places, dtypes, number)
    return found


def _signature(pair: str, name: str, number: int) -> list[Trial]:
    if not callable(SIGNATURES[name].plant):  # an edit of modules: of blocks, or of what is outside them
        places = PLACES if in_blocks(name) else ("",)
        return _dealt("signature", name, pair, places, list(DTYPES), number)
    sites = {d: SITES[(number + k) % len(SITES)] for k, d in enumerate(DTYPES)}
    return [
        Trial(t.source, t.name, t.pair, t.dtype, t.where, t.inputs, t.seed, SITES[(number + n) % len(SITES)])
        for n, t in enumerate(_dealt("signature", name, pair, PLACES, list(sites), number))
    ]


def _dealt(source: str, name: str, pair: str, places: tuple[str, ...], dtypes: list[str], number: int) -> list[Trial]:
    """Give each plant all places with dtypes in turn, and one drawn input; a real pair gets one of each."""
    if pair != BUNDLED:
        return [Trial(source, name, pair, dtypes[number % len(dtypes)], places[number % len(places)], "shape0", 7)]
    turns = max(len(places), len(dtypes))
    default = [
        Trial(source, name, pair, dtypes[(number + k) % len(dtypes)], places[k % len(places)],
              f"shape{(number // 2 + k) % 2 * 4}", k % 2)
        for k in range(turns)
    ]  # fmt: skip
    dtype, place = dtypes[number % len(dtypes)], places[number % len(places)]
    return [*default, Trial(source, name, pair, dtype, place, f"drawn{number % 3}", 3)]


def _bundled_plants() -> list[Trial]:
    found = []
    for number, (name, plant) in enumerate(p for p in PLANTS.items() if p[1].kind != "benign"):
        dtypes = [str(d).removeprefix("torch.") for d in plant.dtypes]
        found += _dealt("plant", name, BUNDLED, PLACES if plant.expect.startswith("block") else ("",), dtypes, number)
    return found


def sample(count: int) -> list[Trial]:
    """Take trials of the bundled pair evenly over the whole plan."""
    own = [t for t in trials_of_bundled() if not t.inputs.startswith("drawn")]
    step = max(1, len(own) // count)
    return own[step // 2 :: step][:count]


def trials_of_bundled() -> list[Trial]:
    """List the bundled pair's trials, plant by plant."""
    return list(dict.fromkeys([*_of_pair(BUNDLED), *_bundled_plants()]))
