"""The expressions of the dashboards: which series are chosen, and what is usually asked of them."""

from __future__ import annotations

from typing import Final

HOUSE: Final = 'job=~"$job",instance=~"$instance"'
LISTENER: Final = f'{HOUSE},listener=~"$listener"'
ENDPOINT: Final = f'{HOUSE},upstream=~"$upstream"'

OVER: Final = "[$__rate_interval]"
SHARES: Final = (0.5, 0.95, 0.99)


def of(metric: str, selector: str = LISTENER) -> str:
    """The series of a metric that were chosen."""
    return f"sockpair_{metric}{{{selector}}}"


def each_second(metric: str, *by: str, selector: str = LISTENER) -> str:
    """How fast a counter rises, summed up but for these labels."""
    return f"{_sum(by)}(rate({of(metric, selector)}{OVER}))"


def now(metric: str, *by: str, selector: str = LISTENER) -> str:
    """How much there is, summed up but for these labels."""
    return f"{_sum(by)}({of(metric, selector)})"


def busy(expression: str) -> str:
    """Only where it is not nothing: of many reasons few occur."""
    return f"{expression} > 0"


def share(part: str, whole: str) -> str:
    """A part of a whole; nothing where there is no whole."""
    return f"{part} / ({whole} > 0)"


def buckets(metric: str) -> str:
    """The buckets of a histogram, for a heat map."""
    return f"sum by (le) (increase({of(f'{metric}_bucket')}{OVER}))"


def quantiles(metric: str) -> dict[str, str]:
    """What half, and nearly all, stay within, by legend; only while there is something."""
    rates = f"sum by (le) (rate({of(f'{metric}_bucket')}{OVER}))"
    return {f"{each:.0%}": f"histogram_quantile({each}, {rates}) >= 0" for each in SHARES}


def quantile(part: float, metric: str, by: str) -> str:
    """What a part of all stays within, by a label; only while there is something."""
    rates = f"sum by (le, {by}) (rate({of(f'{metric}_bucket')}{OVER}))"
    return f"histogram_quantile({part}, {rates}) >= 0"


def _sum(by: tuple[str, ...]) -> str:
    return f"sum by ({', '.join(by)}) " if by else "sum"
