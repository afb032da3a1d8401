"""What an entry of the catalogue is: a claim of the literature, its checks, and a picture."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Check:
    """One number beside what the theory says: at most or at least a bound, or close to a value."""

    what: str
    measured: float
    kind: Literal["below", "above", "close"]
    reference: float
    tolerance: float = 0.0

    @property
    def passes(self) -> bool:
        """Whether the number is as claimed; NaN never is."""
        if self.kind == "below":
            return self.measured <= self.reference
        if self.kind == "above":
            return self.measured >= self.reference
        return abs(self.measured - self.reference) <= self.tolerance

    @property
    def expected(self) -> str:
        """The reference with its kind, such as `≤ 1e-07`."""
        if self.kind == "close":
            return f"{_digits(self.reference, self.tolerance)} ± {self.tolerance:.2g}"
        return f"{'≤' if self.kind == 'below' else '≥'} {self.reference:.4g}"

    @property
    def found(self) -> str:
        """The number, with as many digits as the tolerance asks for."""
        return _digits(self.measured, self.tolerance) if self.kind == "close" else f"{self.measured:.3g}"


def below(what: str, measured: float, bound: float) -> Check:
    """`measured` is at most `bound`; with an error as the number, the hard test of a closed form."""
    return Check(what, float(measured), "below", float(bound))


def above(what: str, measured: float, bound: float) -> Check:
    """`measured` is at least `bound`."""
    return Check(what, float(measured), "above", float(bound))


def close(what: str, measured: float, reference: float, tolerance: float) -> Check:
    """`measured` differs from `reference` by at most `tolerance`, which is absolute."""
    return Check(what, float(measured), "close", float(reference), float(tolerance))


def holds(what: str, fact: bool) -> Check:
    """A statement that is true or not, such as an order or a monotone sequence: 1 or 0."""
    return Check(what, float(fact), "above", 1.0)


@dataclass(frozen=True)
class Entry:
    """An entry: `claim` is one sentence, `source` the paper, and `draw` fills a figure."""

    claim: str
    source: str
    checks: list[Check]
    draw: Callable[[Figure], None]

    @property
    def passes(self) -> bool:
        """Whether all checks pass; an entry without checks claims nothing, and fails."""
        return bool(self.checks) and all(check.passes for check in self.checks)


def _digits(value: float, tolerance: float) -> str:
    if not (math.isfinite(value) and value != 0 and tolerance > 0):
        return f"{value:.4g}"
    # one digit beyond the tolerance
    return f"{value:.{min(max(2 + math.floor(math.log10(abs(value) / tolerance) + 0.5), 3), 15)}g}"
