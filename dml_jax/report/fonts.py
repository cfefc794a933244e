"""Fonts of figures: matplotlib's own has no Chinese, Japanese or Korean, and fonts of the system may."""

import functools

from matplotlib import font_manager

# What systems bring for scripts that DejaVu Sans does not have.
_FALLBACKS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans JP",
    "Noto Sans SC",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Hiragino Sans",
    "PingFang SC",
    "Apple SD Gothic Neo",
    "Yu Gothic",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Unifont",
)


@functools.cache
def families() -> list[str]:
    """Returns the families that texts of a figure may be set in, those of the system after our own."""
    there = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FALLBACKS if name in there)]


@functools.cache
def _characters() -> frozenset[int]:
    found: set[int] = set()
    for family in families():
        path = font_manager.findfont(family)
        found |= font_manager.get_font(path).get_charmap().keys()
    return frozenset(found)


def drawable(text: str) -> bool:
    """Returns whether one of the families has each character of a text; else it would be drawn as boxes.

    Args:
      text: the text.

    >>> drawable("Bär"), drawable("\\U000e0001")
    (True, False)
    """
    return all(ord(character) in _characters() for character in text)
