"""Differences that are known: why one is accepted, who answers for it, and until when."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from parity.errors import UsageError


@dataclass(frozen=True)
class Known:
    """An accepted difference.

    Args:
        reason: why it is accepted.
        owner: who answers for it; "" where nobody is named.
        expires: last day it is accepted on, as YYYY-MM-DD; "" for ever.

    Raises:
        UsageError: no reason is given, or `expires` is no such day.
    """

    reason: str
    owner: str = ""
    expires: str = ""

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise UsageError("a known difference needs a reason")
        if self.expires:
            checked_day(self.expires)

    def expired(self, today: str) -> bool:
        """Say whether it is accepted no more.

        >>> Known("saves memory", expires="2026-06-30").expired("2026-07-01")
        True
        """
        return bool(self.expires) and self.expires < today

    def worded(self) -> str:
        """Give the reason with owner and last day."""
        terms = [f"owner {self.owner}"] * bool(self.owner) + [f"until {self.expires}"] * bool(self.expires)
        return f"{self.reason} ({', '.join(terms)})" if terms else self.reason


def as_known(given: str | Known) -> Known:
    """Return a known difference; a plain reason has no owner and no end."""
    return given if isinstance(given, Known) else Known(given)


def checked_day(text: str) -> str:
    """Return a day as given.

    Raises:
        UsageError: it is none.
    """
    try:
        if datetime.date.fromisoformat(text).isoformat() == text:
            return text
    except ValueError:
        pass
    raise UsageError(f"{text!r} is no day\nvalid: YYYY-MM-DD, such as 2027-01-31")


def today() -> str:
    """Return this day in UTC, as `Known.expires` is written."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
