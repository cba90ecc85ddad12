"""Draws what tools took over the saves of a series, as an SVG and without a library: a grid, lines, their names."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 120, 40, 44
LABEL_HEIGHT = 14
GRID_LINES = 5
COLOURS = (
    "#d62728", "#ff9896", "#7f7f7f", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf",
    "#ff7f0e",
)  # fmt: skip


def svg(title: str, lines: Mapping[str, Sequence[int]]) -> str:
    """Return a picture of lines by name, each a size in bytes after every save; the first line is drawn thick."""
    saves = max(len(sizes) for sizes in lines.values())
    top = max(max(sizes) for sizes in lines.values())

    def x(number: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * number / max(1, saves - 1)

    def y(size: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * size / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 8}">saves, 1 to {saves}; stored in MB</text>',
    ]
    for step in range(GRID_LINES + 1):
        height = y(top * step / GRID_LINES)
        parts.append(f'<path d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        size = f"{top * step / GRID_LINES / 1e6:.0f}"
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{size}</text>')
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(lines)}
    for number, (name, sizes) in enumerate(lines.items()):
        points = " ".join(f"{x(save):.1f},{y(size):.1f}" for save, size in enumerate(sizes))
        thickness = 1.5 if number else 3
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colours[name]}" stroke-width="{thickness}"/>')
    height = float(TOP) - LABEL_HEIGHT
    for name, sizes in sorted(lines.items(), key=lambda line: -line[1][-1]):
        height = max(height + LABEL_HEIGHT, y(sizes[-1]) + 4)  # labels of lines that end together stand in a column
        parts.append(f'<text x="{WIDTH - RIGHT + 6}" y="{height:.1f}" fill="{colours[name]}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])
