"""A figure whose texts may be Chinese, Japanese or Korean, as names of classes and ids of samples are."""

import logging
import warnings
from functools import cache

from matplotlib import font_manager, rc_context
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.text import Text

_log = logging.getLogger(__name__)
_FIRST = "DejaVu Sans"
"""matplotlib brings it along."""
_BEHIND = (
    *(f"Noto Sans CJK {region}" for region in ("SC", "TC", "JP", "KR")),
    *("Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback"),
    *("PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Arial Unicode MS"),
)
"""Fonts with the characters that it lacks, the best first."""
_MISSING = "missing from font"
"""Part of what matplotlib warns of for each character."""


class AnyScriptFigure(Figure):
    """A figure that draws each character with the first installed font that has it. Where none has, a box stands in its
    place, and the log says once what to install."""

    def draw(self, renderer: RendererBase) -> None:
        """As of matplotlib, whoever asks for it."""
        fonts = font_families()
        with warnings.catch_warnings(record=True) as caught, rc_context({"font.family": fonts}):
            warnings.simplefilter("always")
            for text in self.findobj(Text):
                text.set_fontfamily(fonts)
            super().draw(renderer)
        for warning in caught:
            if _MISSING not in str(warning.message):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if any(_MISSING in str(warning.message) for warning in caught):
            _say_what_to_install()


def font_families() -> list[str]:
    """The installed fonts of a figure, in the order in which they are asked for a character."""
    installed = set(font_manager.get_font_names())
    return [_FIRST, *(name for name in _BEHIND if name in installed)]


@cache
def _say_what_to_install() -> None:
    _log.warning(
        "warning: no installed font has all characters of the figures, and boxes stand in their place; install one of "
        "their language, such as fonts-noto-cjk"
    )
