"""Draws bars into a PNG, with nothing but Pillow, which TensorBoard brings along."""

import pathlib

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _LEFT, _ROW, _MARGIN = 900, 260, 44, 24


def draw_bars(path: pathlib.Path, title: str, bars: dict[str, float], *, unit: str) -> None:
    """Horizontal bars from 0, longest first to last as they come, each with its value."""
    font, small = ImageFont.load_default(20), ImageFont.load_default(16)
    image = Image.new("RGB", (_WIDTH, 2 * _MARGIN + _ROW * (len(bars) + 1)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, _MARGIN), title, "black", font)
    scale = (_WIDTH - _LEFT - 180) / max(bars.values())
    for number, (name, value) in enumerate(bars.items()):
        top = _MARGIN + _ROW * (number + 1)
        draw.text((_MARGIN, top + 8), name, "black", small)
        draw.rectangle((_LEFT, top, _LEFT + max(1, value * scale), top + _ROW - 12), "#3b6ea5")
        draw.text((_LEFT + value * scale + 10, top + 8), f"{value:,.0f} {unit}", "black", small)
    image.save(path)
