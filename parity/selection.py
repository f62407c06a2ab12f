"""Select cases by words of their ids, as `pytest -k` does, where pytest is not installed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from parity.case import ParityCase
from parity.errors import UsageError

_TOKEN = re.compile(r"\s*(\(|\)|[^\s()]+)")
Test = Callable[[str], bool]


def select(cases: Sequence[ParityCase], expression: str | None) -> list[ParityCase]:
    """Return the cases whose id fits; all without an expression.

    Raises:
        UsageError: the expression is malformed, or fits no case.
    """
    if not expression:
        return list(cases)
    fits = compile_expression(expression)
    chosen = [case for case in cases if fits(case.id)]
    if not chosen:
        shown = f"one of the {len(cases)} ids: {cases[0].id}" if cases else "there are no cases"
        raise UsageError(f"no case fits -k {expression!r}\n{shown}")
    return chosen


def compile_expression(expression: str) -> Test:
    """Return the test an expression of words, `and`, `or`, `not` and parentheses stands for.

    >>> fits = compile_expression("block07 and not (ffn or lora_on)")
    >>> fits("longcat-block07-self_attn-lora_off"), fits("longcat-block07-ffn-lora_off")
    (True, False)

    Raises:
        UsageError: it is malformed.
    """
    parser = _Parser(expression)
    test = parser.either()
    if parser.next is not None:
        raise parser.wrong()
    return test


class _Parser:
    """Recursive descent: `or` binds weakest, `not` strongest."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens: Iterator[str] = iter(_TOKEN.findall(expression))
        self.next: str | None = next(self._tokens, None)

    def wrong(self) -> UsageError:
        """Word what is wrong with the expression here."""
        what = "ends too early" if self.next is None else f"cannot have {self.next!r} there"
        valid = "words of case ids joined by and, or, not and parentheses"
        return UsageError(f"the expression -k {self._expression!r} {what}\nvalid: {valid}")

    def _take(self) -> str | None:
        taken, self.next = self.next, next(self._tokens, None)
        return taken

    def either(self) -> Test:
        """Parse alternatives."""
        left = self._both()
        while self.next == "or":
            self._take()
            left = _any(left, self._both())
        return left

    def _both(self) -> Test:
        left = self._one()
        while self.next == "and":
            self._take()
            left = _all(left, self._one())
        return left

    def _one(self) -> Test:
        if self.next == "not":
            self._take()
            test = self._one()
            return lambda text: not test(text)
        if self.next == "(":
            self._take()
            inner = self.either()
            if self._take() != ")":
                raise self.wrong()
            return inner
        if self.next in (None, ")", "and", "or"):
            raise self.wrong()
        word = str(self._take()).lower()
        return lambda text: word in text.lower()


def _any(left: Test, right: Test) -> Test:
    return lambda text: left(text) or right(text)


def _all(left: Test, right: Test) -> Test:
    return lambda text: left(text) and right(text)
