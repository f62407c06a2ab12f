"""References that were recorded once and are kept: a cache of recordings by everything that would make them others."""

from __future__ import annotations

from pathlib import Path

from parity.identity import check_same, code_of, key_of
from parity.io.cache import Use, shrink
from parity.io.passes import PASS
from parity.io.recording import RECORDING, TENSORS, RecordingFolder
from parity.io.tree import digests_of
from parity.kept import Tell
from parity.recorder import ReferenceAtWork, ReferenceRecording


def cached_recording(at_work: ReferenceAtWork, cache: Path, tell: Tell, limit: int | None = None) -> Use:
    """Return the use of the reference's recording in a cache; what is missing of it is computed and added.

    Args:
        at_work: the reference, loaded.
        cache: the cache's folder.
        tell: shown progress.
        limit: bytes that the cache may hold: what was used longest ago goes; None: any number.

    Raises:
        RecordError: what is there is damaged, or nothing can be written.
    """
    use = Use(cache / at_work.plan.pair.name / cache_key(at_work))
    try:
        target = RecordingFolder(use.folder)
        with target.writing(waiting=tell):
            found = target.begun()
            if found is not None:
                check_same(at_work.identity, found, str(use.folder))
            ReferenceRecording(at_work, target, tell).write()
        if limit is not None:
            _shrink(cache, limit, tell)
    except BaseException:
        use.leave()
        raise
    return use


def _shrink(cache: Path, limit: int, tell: Tell) -> None:
    removed = shrink(cache, limit)
    if removed:
        tell(f"{len(removed)} recordings used longest ago removed from {cache}, which may hold {limit / 1e9:,.1f} GB")


def cache_key(at_work: ReferenceAtWork) -> str:
    """Return where a cache keeps a recording: by identity, code of the side, format, and inputs at one seed."""
    plan = at_work.plan
    kinds = {"": plan.pair.inputs, **plan.pair.variants}
    inputs = {kind: digests_of(draw(plan.build, 0)) for kind, draw in kinds.items()}
    schema = [kind.version for kind in (RECORDING, TENSORS, PASS)]
    return key_of({**at_work.identity, "inputs": inputs, "schema": schema, "code_of_side": code_of(at_work.side)})
