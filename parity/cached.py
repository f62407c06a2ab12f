"""References that were recorded once and are kept: a cache of recordings by everything that would make them others."""

from __future__ import annotations

from pathlib import Path

from parity.identity import check_same, code_of, key_of
from parity.io.passes import PASS
from parity.io.recording import RECORDING, TENSORS, RecordingFolder
from parity.io.tree import digests_of
from parity.kept import Tell
from parity.recorder import ReferenceAtWork, ReferenceRecording


def cached_recording(at_work: ReferenceAtWork, cache: Path, tell: Tell) -> Path:
    """Return the folder of the reference's recording in a cache; what is missing of it is computed and added."""
    folder = cache / at_work.plan.pair.name / cache_key(at_work)
    target = RecordingFolder(folder)
    with target.writing(waiting=tell):
        found = target.begun()
        if found is not None:
            check_same(at_work.identity, found, str(folder))
        ReferenceRecording(at_work, target, tell).write()
    return folder


def cache_key(at_work: ReferenceAtWork) -> str:
    """Return where a cache keeps a recording: by identity, code of the side, format, and inputs at one seed."""
    plan = at_work.plan
    kinds = {"": plan.pair.inputs, **plan.pair.variants}
    inputs = {kind: digests_of(draw(plan.build, 0)) for kind, draw in kinds.items()}
    schema = [kind.version for kind in (RECORDING, TENSORS, PASS)]
    return key_of({**at_work.identity, "inputs": inputs, "schema": schema, "code_of_side": code_of(at_work.side)})
