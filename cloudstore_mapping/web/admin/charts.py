"""SVG charts of the dashboard: accesses per day and largest files, with their figures as text."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from markupsafe import Markup

from cloudstore_mapping.service.quotas import DAY

_BAR: Final = 14
_GAP: Final = 4
_HEIGHT: Final = 90
_TOP: Final = 18


def format_size(size: int) -> str:
    """Return a number of bytes as short text."""
    if size < 1024:
        return f"{size} B"
    shown = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        shown /= 1024
        if shown < 1000:
            return f"{shown:.1f} {unit}" if shown < 100 else f"{shown:.0f} {unit}"
    return f"{shown / 1024:.1f} TiB"


def format_day(day: int) -> str:
    """Return the ISO date of a day counted from 1970."""
    return f"{datetime.fromtimestamp(day * DAY, UTC):%Y-%m-%d}"


def accesses_chart(first_day: int, accesses: Sequence[int]) -> Markup:
    """Return a bar chart of the accesses on each day from `first_day`."""
    most = max(accesses, default=0)
    width = len(accesses) * (_BAR + _GAP)
    bars = Markup("").join(
        _bar(number, first_day + number, count, most, width) for number, count in enumerate(accesses)
    )
    total = sum(accesses)
    return Markup(
        '<svg class="picture days" viewBox="0 0 {width} {height}" role="img" aria-labelledby="days-title">'
        '<title id="days-title">Accesses per day from {first} to {last}: {total} in total, {most} at most</title>'
        '<line class="axis" x1="0" y1="{base}" x2="{width}" y2="{base}"/>{bars}'
        '<text class="label" x="0" y="{below}">{first}</text>'
        '<text class="label" x="{width}" y="{below}" text-anchor="end">{last}</text></svg>'
    ).format(
        width=width,
        height=_TOP + _HEIGHT + 24,
        base=_TOP + _HEIGHT,
        below=_TOP + _HEIGHT + 18,
        first=format_day(first_day),
        last=format_day(first_day + len(accesses) - 1),
        total=f"{total:,}",
        most=f"{most:,}",
        bars=bars,
    )


def _bar(number: int, day: int, count: int, most: int, width: int) -> Markup:
    height = round(_HEIGHT * count / most) if most else 0
    if count:
        height = max(height, 2)
    x = number * (_BAR + _GAP) + _GAP // 2
    # Only the highest bar has a label; the others show their figure in a tooltip.
    is_labelled = count == most and count > 0
    label = Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        min(max(x + _BAR // 2, 14), width - 14), _TOP + _HEIGHT - height - 5, f"{count:,}"
    )
    return Markup(
        '<g><title>{day}: {count}</title><rect class="bar" x="{x}" y="{y}" width="{bar}" height="{height}" rx="2"/>'
        "{label}</g>"
    ).format(
        day=format_day(day),
        count=f"{count:,}",
        x=x,
        y=_TOP + _HEIGHT - height,
        bar=_BAR,
        height=height,
        label=label if is_labelled else "",
    )


def sizes_chart(identity: str, title: str, files: Sequence[tuple[str, int]]) -> Markup:
    """Return a bar chart of file sizes, the largest first; `identity` must be unique in the page."""
    row = 34
    largest = max((size for _, size in files), default=0)
    rows = Markup("").join(
        Markup(
            '<g><title>{name}: {size}</title><text class="label" x="0" y="{text_y}">{short}</text>'
            '<text class="label" x="360" y="{text_y}" text-anchor="end">{size}</text>'
            '<rect class="bar" x="0" y="{y}" width="{width}" height="8" rx="2"/></g>'
        ).format(
            name=name,
            short=name if len(name) <= 36 else f"{name[:35]}…",
            size=format_size(size),
            text_y=number * row + 14,
            y=number * row + 20,
            width=max(2, round(360 * size / largest)) if largest else 2,
        )
        for number, (name, size) in enumerate(files)
    )
    return Markup(
        '<svg class="picture" viewBox="0 0 360 {height}" role="img" aria-labelledby="{identity}">'
        '<title id="{identity}">{title}</title>{rows}</svg>'
    ).format(height=max(1, len(files)) * row, identity=identity, title=title, rows=rows)
