"""Small charts as inline SVG: crisp at every width, coloured by CSS variables, text that never scales.

A line chart is an SVG without a viewBox: lines live in a nested one that stretches, while ticks, labels and points
are placed in percent, so a chart shrinks to a phone with its letters at their size.
"""
from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from essence_kd.io.text import visible


WRITING = "\n\t\xa0\u200c\u200d"  # cannot be seen, and may be part of a text


def esc(text) -> str:
    """Text for HTML, quotes included; characters that would reorder or hide others are escapes."""
    return html.escape(visible(str(text), keep=WRITING), quote=True)


@dataclass(frozen=True)
class Series:
    """One line: points in data coordinates, a CSS class that colours it, a name for the legend."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    css: str


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers (1, 2, 2.5 or 5 times a power of ten apart) inside [low, high]."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick label: no trailing zeros, a real minus."""
    text = f"{value:.6g}"
    return text.replace("-", "\u2212")


def _percent(value: float, low: float, high: float) -> float:
    return 100.0 * (value - low) / (high - low) if high > low else 50.0


def legend(series: Sequence[Series]) -> str:
    """Names and colours of lines."""
    return '<div class="legend">' + "".join(
        f'<span><i class="key {s.css}"></i>{esc(s.name)}</span>' for s in series) + "</div>"


def line_chart(series: Sequence[Series], *, x_label: str = "", y_label: str = "",
               x_range: tuple[float, float] | None = None, y_range: tuple[float, float] | None = None,
               x_ticks: Sequence[float] | None = None, log_x: bool = False,
               points: Sequence[tuple[float, float, str, str]] = (), height: int = 220, title: str = "") -> str:
    """A line chart.

    Args:
      points: (x, y, label, CSS class) of dots with a word beside them.
      log_x: positions on a logarithmic axis; x must be positive.
      title: what a screen reader says.
    """
    scale = math.log10 if log_x else float
    xs = [float(v) for s in series for v in s.x]
    ys = [float(v) for s in series for v in s.y if math.isfinite(v)]
    if not xs or not ys:
        return '<p class="muted">no data</p>'
    x_low, x_high = x_range or (min(xs), max(xs))
    y_low, y_high = y_range or (min(ys), max(ys))
    if y_range is None:
        room = 0.06 * (y_high - y_low) or 0.5
        y_low, y_high = y_low - room, y_high + room
    left, right = scale(x_low), scale(x_high)
    out = [f'<div class="plot" style="height:{height}px"><svg role="img" aria-label="{esc(title)}">']
    for y in ticks(y_low, y_high, 4):
        at = 100.0 - _percent(y, y_low, y_high)
        out.append(f'<line class="grid" x1="0" x2="100%" y1="{at:.2f}%" y2="{at:.2f}%"/>'
                   f'<text class="tick" x="-7" y="{at:.2f}%" dy=".32em" text-anchor="end">{number(y)}</text>')
    chosen = list(x_ticks) if x_ticks is not None else ticks(x_low, x_high, 5)
    for x in chosen:
        at = _percent(scale(x), left, right)
        out.append(f'<text class="tick" x="{at:.2f}%" y="100%" dy="1.5em" text-anchor="middle">{number(x)}</text>')
        out.append(f'<line class="axis" x1="{at:.2f}%" x2="{at:.2f}%" y1="100%" y2="100%" '
                   f'transform="translate(0 4)"/>')
    out.append('<line class="axis" x1="0" x2="100%" y1="100%" y2="100%"/>')
    out.append('<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">')
    for s in series:
        pieces: list[str] = []
        pen_down = False
        for x, y in zip(s.x, s.y):
            if not math.isfinite(y):
                pen_down = False
                continue
            px, py = 10 * _percent(scale(x), left, right), 1000 - 10 * _percent(y, y_low, y_high)
            pieces.append(f"{'L' if pen_down else 'M'}{px:.1f} {py:.1f}")
            pen_down = True
        out.append(f'<path class="line {s.css}" d="{"".join(pieces)}" vector-effect="non-scaling-stroke"/>')
    out.append("</svg>")
    for x, y, label, css in points:
        at_x, at_y = _percent(scale(x), left, right), 100.0 - _percent(y, y_low, y_high)
        side = "end" if at_x > 55 else "start"
        shift = -9 if side == "end" else 9
        out.append(f'<circle class="dot {css}" cx="{at_x:.2f}%" cy="{at_y:.2f}%" r="4.5"/>'
                   f'<text class="note {css}" x="{at_x:.2f}%" y="{at_y:.2f}%" dx="{shift}" dy="1.5em" '
                   f'text-anchor="{side}">{esc(label)}</text>')
    out.append("</svg></div>")
    above = f'<div class="axis-title">{esc(y_label)}</div>' if y_label else ""
    below = f'<div class="axis-title x">{esc(x_label)}</div>' if x_label else ""
    return f'<div class="chart">{above}{"".join(out)}{below}</div>'


class Axis:
    """A common horizontal axis for intervals that stand in different rows: values to percent, with round ticks."""

    def __init__(self, values: Sequence[float], *, zero: bool = False, count: int = 5):
        low, high = min([*values, 0.0] if zero else values), max([*values, 0.0] if zero else values)
        room = 0.05 * (high - low) or 1.0
        self.low, self.high, self.zero = low - room, high + room, zero
        self.ticks = ticks(self.low, self.high, count)

    def at(self, value: float) -> str:
        """Where a value lies, as CSS has it: "12.34%"."""
        return f"{_percent(value, self.low, self.high):.2f}%"

    def mark(self, value: float, low: float, high: float, css: str) -> str:
        """The SVG of one row: grid, whisker from ``low`` to ``high``, dot at ``value``."""
        lines = "".join(f'<line class="{"nil" if self.zero and m == 0 else "grid"}" x1="{self.at(m)}" '
                        f'x2="{self.at(m)}" y1="0" y2="100%"/>' for m in self.ticks)
        return (f'<div class="cell"><svg class="{css}" aria-hidden="true">{lines}'
                f'<line class="whisker" x1="{self.at(low)}" x2="{self.at(high)}" y1="50%" y2="50%"/>'
                f'<circle class="dot" cx="{self.at(value)}" cy="50%" r="4.5"/></svg></div>')

    def labels(self) -> str:
        """The SVG of the tick labels, for the last row."""
        texts = "".join(f'<text class="tick" x="{self.at(m)}" y="1em" text-anchor="middle">{number(m)}</text>'
                        for m in self.ticks)
        return f'<div class="cell labels"><svg aria-hidden="true">{texts}</svg></div>'


def bar_rows(rows: Sequence[tuple[str, float, str, str]], *, title: str = "") -> str:
    """Horizontal bars: (name, value, text, CSS class) per row, from zero to the largest."""
    most = max([value for _, value, _, _ in rows] + [0.0]) or 1.0
    out = [f'<div class="rows bars" role="img" aria-label="{esc(title)}">']
    for name, value, text, css in rows:
        width = max(0.0, 100.0 * value / most)
        out.append(f'<div class="row"><div class="name">{esc(name)}</div><div class="cell"><svg class="{css}">'
                   f'<rect class="bar" x="0" y="22%" width="{width:.2f}%" height="56%" rx="2"/></svg></div>'
                   f'<div class="num">{esc(text)}</div></div>')
    return "".join(out) + "</div>"


def png_gray(image: np.ndarray) -> str:
    """A uint8 image (rows, columns), 0 = black, as a PNG data URI."""
    rows, columns = image.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    raw = np.concatenate([np.zeros((rows, 1), np.uint8), np.asarray(image, np.uint8)], axis=1).tobytes()
    data = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
