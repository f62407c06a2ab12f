"""Records of runs as strict JSON, with a schema version and a digest, so that a broken file is named as what it is."""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.errors import RecordError
from parity.io.atomic import write_atomic

SCHEMA = "dit-parity-record"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Kind:
    """A kind of JSON file: schema, version, and what people call it."""

    schema: str
    version: int
    what: str


RECORD = Kind(SCHEMA, SCHEMA_VERSION, "parity record")
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MOST_BYTES = 1 << 30
_ESCAPED = re.compile(r"\\*(NaN|-?Infinity)")


def write_record(path: str | Path, record: Mapping[str, Any], kind: Kind = RECORD) -> Path:
    """Write a record, or JSON of another kind.

    NaN and inf become the strings "NaN", "Infinity" and "-Infinity", tuples become lists.

    Raises:
        RecordError: a value is not JSON's, or a key is no string.
    """
    encoded = _encoded(record, "record")
    whole = {"schema": kind.schema, "schema_version": kind.version, "digest": _digest(encoded), "record": encoded}
    return write_atomic(path, (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())


def read_record(path: str | Path, kind: Kind = RECORD) -> dict[str, Any]:
    """Read a record, or JSON of another kind, back.

    Raises:
        RecordError: the file is missing, truncated, edited, foreign, or of another schema version.
    """
    path = Path(path)
    whole = _parsed(path, kind)
    if not isinstance(whole, dict) or whole.get("schema") != kind.schema:
        raise RecordError(f"{path} is no {kind.what}: its schema is not {kind.schema!r}")
    _check_version(path, whole.get("schema_version"), kind)
    record = whole.get("record")
    with as_written(path, kind):
        if not isinstance(record, dict) or whole.get("digest") != _digest(record):
            raise RecordError(f"{path} was edited or damaged after it was written: its digest does not fit\nrun again")
        out = _decoded(record)
    assert isinstance(out, dict)
    return out


def copy_record(source: str | Path, target: str | Path) -> Path:
    """Copy a record as it is.

    Raises:
        OSError: the target cannot be written; it is untouched.
    """
    return write_atomic(target, Path(source).read_bytes())


def as_json(record: Mapping[str, Any]) -> str:
    """Return a record as the strict JSON that `write_record` keeps of it, without schema and digest.

    Raises:
        RecordError: a value is not JSON's, or a key is no string.
    """
    return json.dumps(_encoded(record, "record"), indent=1, allow_nan=False)


def _parsed(path: Path, kind: Kind) -> Any:
    try:
        held = path.stat()
        if not stat.S_ISREG(held.st_mode):
            raise RecordError(f"cannot read {path}: it is no regular file")
        if held.st_size > _MOST_BYTES:
            raise RecordError(f"{path} is no {kind.what}: it is larger than {_MOST_BYTES >> 20} MB")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is no {kind.what}: it is not text") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is truncated or no JSON: {error}\nrun again to write it whole") from error


@contextmanager
def as_written(path: str | Path, kind: Kind) -> Iterator[None]:
    """Turn what unpacking content of another shape raises into words: the file is foreign, its digest its own.

    Raises:
        RecordError: something was missing, or of another type, in what was unpacked inside the context.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        what = f"{type(error).__name__} {str(error)[:80]!r}"
        raise RecordError(f"{path} is no {kind.what} of this project: what it holds does not fit: {what}") from error


def _check_version(path: Path, version: object, kind: Kind) -> None:
    if not isinstance(version, int) or isinstance(version, bool):
        raise RecordError(f"{path} has schema version {version!r}, a number is needed")
    if version < kind.version:
        raise RecordError(f"{path} has the older schema version {version}, this is {kind.version}\nrun again")
    if version > kind.version:
        text = f"{path} has schema version {version}, newer than {kind.version}"
        raise RecordError(f"{text}\nupdate with: pip install --upgrade dit-parity")


def _digest(encoded: Any) -> str:
    text = json.dumps(encoded, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _encoded(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {_checked_key(key, where): _encoded(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return f"\\{value}" if _ESCAPED.fullmatch(value) else value
    if value is None or isinstance(value, bool | int | float):
        return value
    raise RecordError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def _checked_key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise RecordError(f"{where} has the key {key!r}, a {type(key).__name__}; JSON needs strings")
    return key


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, str) and _ESCAPED.fullmatch(value):
        return _WORDS.get(value, value[1:])
    return value
