"""How much a store is used, as pictures: SVG with the figures as text in it, and no script or style of its own."""

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


def size_text(size: int) -> str:
    """Return a number of bytes as a short text."""
    if size < 1024:
        return f"{size} B"
    shown = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        shown /= 1024
        if shown < 1000:
            return f"{shown:.1f} {unit}" if shown < 100 else f"{shown:.0f} {unit}"
    return f"{shown / 1024:.1f} TiB"


def day_text(day: int) -> str:
    """Return a day, counted since 1970, as people write it."""
    return f"{datetime.fromtimestamp(day * DAY, UTC):%Y-%m-%d}"


def days_picture(first_day: int, accesses: Sequence[int]) -> Markup:
    """Return bars of the accesses on each day from the first one on."""
    most = max(accesses, default=0)
    width = len(accesses) * (_BAR + _GAP)
    bars = Markup("").join(
        _bar(number, first_day + number, times, most, width) for number, times in enumerate(accesses)
    )
    total = sum(accesses)
    return Markup(
        '<svg class="picture days" viewBox="0 0 {width} {height}" role="img" aria-labelledby="days-title">'
        '<title id="days-title">Accesses a day from {first} to {last}: {total} together, {most} at most</title>'
        '<line class="axis" x1="0" y1="{base}" x2="{width}" y2="{base}"/>{bars}'
        '<text class="label" x="0" y="{below}">{first}</text>'
        '<text class="label" x="{width}" y="{below}" text-anchor="end">{last}</text></svg>'
    ).format(
        width=width,
        height=_TOP + _HEIGHT + 24,
        base=_TOP + _HEIGHT,
        below=_TOP + _HEIGHT + 18,
        first=day_text(first_day),
        last=day_text(first_day + len(accesses) - 1),
        total=f"{total:,}",
        most=f"{most:,}",
        bars=bars,
    )


def _bar(number: int, day: int, times: int, most: int, width: int) -> Markup:
    height = round(_HEIGHT * times / most) if most else 0
    if times:
        height = max(height, 2)
    x = number * (_BAR + _GAP) + _GAP // 2
    # The largest one says how high it is; the others can be read off it, and say it when pointed at.
    is_labelled = times == most and times > 0
    label = Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        min(max(x + _BAR // 2, 14), width - 14), _TOP + _HEIGHT - height - 5, f"{times:,}"
    )
    return Markup(
        '<g><title>{day}: {times}</title><rect class="bar" x="{x}" y="{y}" width="{bar}" height="{height}" rx="2"/>'
        "{label}</g>"
    ).format(
        day=day_text(day),
        times=f"{times:,}",
        x=x,
        y=_TOP + _HEIGHT - height,
        bar=_BAR,
        height=height,
        label=label if is_labelled else "",
    )


def sizes_picture(identity: str, title: str, files: Sequence[tuple[str, int]]) -> Markup:
    """Return bars of the sizes of some files, the largest first; `identity` is the picture's own in its page."""
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
            size=size_text(size),
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
