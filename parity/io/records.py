"""Records of runs as strict JSON, with a schema version and a digest, so that a broken file is named as what it is."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.errors import RecordError
from parity.io.atomic import write_atomic

SCHEMA = "dit-parity-record"
SCHEMA_VERSION = 1

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ESCAPED = re.compile(r"\\*(NaN|-?Infinity)")


def write_record(path: str | Path, record: Mapping[str, Any]) -> Path:
    """Write a record; NaN and inf become the strings "NaN", "Infinity" and "-Infinity", tuples become lists.

    Raises:
        RecordError: a value is not JSON's, or a key is no string.
    """
    encoded = _encoded(record, "record")
    whole = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "digest": _digest(encoded), "record": encoded}
    return write_atomic(path, (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())


def read_record(path: str | Path) -> dict[str, Any]:
    """Read a record back.

    Raises:
        RecordError: the file is missing, truncated, edited, foreign, or of another schema version.
    """
    path = Path(path)
    whole = _parsed(path)
    if not isinstance(whole, dict) or whole.get("schema") != SCHEMA:
        raise RecordError(f"{path} is no parity record: its schema is not {SCHEMA!r}")
    _check_version(path, whole.get("schema_version"))
    record = whole.get("record")
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


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is no parity record: it is not text") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecordError(f"{path} is truncated or no JSON: {error}\nrun again to write it whole") from error


def _check_version(path: Path, version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool):
        raise RecordError(f"{path} has schema version {version!r}, a number is needed")
    if version < SCHEMA_VERSION:
        raise RecordError(f"{path} has the older schema version {version}, this is {SCHEMA_VERSION}\nrun again")
    if version > SCHEMA_VERSION:
        text = f"{path} has schema version {version}, newer than {SCHEMA_VERSION}"
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
