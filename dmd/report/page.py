"""The page of a report: one HTML file that loads nothing else, from sections of text, tables, figures and samples.

`page.html.j2` is the page, `page.css` how it looks, `page.js` what it does: the samples, copied commands, links that
open a folded section. All three become one file. Without JavaScript everything but the samples is the same.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Literal

from jinja2 import Environment
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from dmd.report.explorer import Explorer
from dmd.report.latex import OF_PAPERS, latex
from dmd.report.style import RC
from dmd.report.tables import Table

_DOTS, _FEW_DOTS = 150, 110
"""Per inch, of a picture and of one in a small page."""
_SHADES = 64
_LONG_TABLE = 24
"""Rows from which a table is folded."""
PAGE = "index.html"
PAGE_IDS = ("contents", "sample-controls", "sample-status", "samples-table", "sample-pages", "sample-data")
"""What `page.html.j2` gives to its own elements; no section is called so."""
_SIZE = "(size)"
"""Stands in the last line of the page until its size is known."""
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with the name of its files and a sentence that says what it shows."""

    name: str
    figure: Figure
    caption: str

    @property
    def width(self) -> int:
        """In pixels of CSS, of which an inch has 96."""
        return round(96 * self.figure.get_figwidth())

    @property
    def height(self) -> int:
        """The same."""
        return round(96 * self.figure.get_figheight())


@dataclass(frozen=True, kw_only=True)
class Download:
    """A text file that lies beside the page, and in it for a reader who has the page alone."""

    name: str
    content: str

    @property
    def address(self) -> str:
        """The file itself, as an address."""
        return _data_url("text/plain;charset=utf-8", self.content.encode())


@dataclass(kw_only=True)
class Section:
    """A part of the page; its files lie in the folder `anchor`."""

    anchor: str
    title: str
    short: str = ""
    """In the contents; empty: the title."""
    text: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """To be copied."""
    explorer: Explorer | None = None
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    part: str = ""
    """Under which line of the contents it stands, with others; empty: by itself."""
    folded: bool = False
    """Whether a reader opens it; its pictures are decoded then."""
    light: bool = False
    """Whether its pictures are drawn once, as PNG of fewer dots, and stand in the page in a few shades, whatever
    `write_page` is told."""


def write_page(
    out: Path,
    title: str,
    summary: str,
    sections: Iterable[Section],
    *,
    names: Mapping[str, str] | None = None,
    small: bool = False,
) -> Path:
    """Write `out/index.html` and, under `out/ANCHOR/`, every figure as PNG and SVG, every table as CSV, and those of
    `OF_PAPERS` as LaTeX too.

    Args:
        sections: each is written before the next one is asked for, so that no more figures are held than it has.
        names: {short name: the whole one}, which a tooltip shows where a cell holds the short one.
        small: the page holds pictures of a few shades in the place of vector graphics, a fifth of their bytes.
    """
    written: list[_Written] = []
    for section in sections:
        folder = out / section.anchor
        folder.mkdir(parents=True, exist_ok=True)
        worst = [] if section.explorer is None else [section.explorer.worst]
        for table in [*worst, *section.tables]:
            (folder / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
        downloads = [
            Download(name=f"{table.name}.tex", content=latex(table, section.anchor))
            for table in section.tables
            if table.name in OF_PAPERS
        ]
        for download in downloads:
            (folder / download.name).write_text(download.content, encoding="utf-8")
        pictures = [_write_picture(folder, picture, small=small, light=section.light) for picture in section.pictures]
        written.append(_Written(section=replace(section, pictures=[]), downloads=downloads, pictures=pictures))
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["named"] = lambda text: _named(text, names or {})
    there = [one.section for one in written]
    samples = sum(len(section.explorer.json) for section in there if section.explorer is not None) / _MIB
    html = environment.from_string(_part("page.html.j2")).render(
        title=title,
        summary=summary,
        written=written,
        parts=_parts(there),
        words_of=_words_of,
        long_table=_LONG_TABLE,
        style=Markup(_part("page.css")),
        script=Markup(_part("page.js")),
        size=_SIZE,
    )
    path = out / PAGE
    before, _, after = html.rpartition(_SIZE)  # the last one: behind all that comes from data
    drawn = sum(len(picture.source) for one in written for picture in one.pictures) / _MIB
    said = f"{len(html.encode()) / _MIB:.1f} MiB, of which pictures {drawn:.1f}, samples {samples:.1f}"
    path.write_text(f"{before}This page has {said}; it loads nothing else.{after}", encoding="utf-8")
    return path


@dataclass(frozen=True, kw_only=True)
class _WrittenPicture:
    source: str
    """The picture itself, as an address."""
    title: str
    width: int
    height: int
    caption: str


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A section without its figures."""

    section: Section
    downloads: list[Download]
    pictures: list[_WrittenPicture]


def _write_picture(folder: Path, picture: Picture, *, small: bool, light: bool) -> _WrittenPicture:
    """Write a picture's files; returns it as the page holds it."""
    svg = b"" if light else render(picture.figure, "svg")
    if svg:
        (folder / f"{picture.name}.svg").write_bytes(svg)
    dots = _FEW_DOTS if light else _DOTS
    png = render(picture.figure, "png", dots=dots)
    (folder / f"{picture.name}.png").write_bytes(png)
    few = small or light
    return _WrittenPicture(
        source=_data_url("image/png", few_shades(png, dots=dots)) if few else _data_url("image/svg+xml", svg),
        title=picture.name.replace("_", " "),
        width=picture.width,
        height=picture.height,
        caption=picture.caption,
    )


def _part(name: str) -> str:
    return files("dmd.report").joinpath(name).read_text(encoding="utf-8")


def _parts(sections: Sequence[Section]) -> list[tuple[str, list[Section]]]:
    """Sections as the contents list them: those of one part in a row together."""
    return [(part, list(members)) for part, members in groupby(sections, key=lambda section: section.part)]


def _words_of(table: Table) -> list[bool]:
    """Which columns of a table hold words."""
    return [table.words(column) for column in range(len(table.header))]


def few_shades(png: bytes, *, dots: int) -> bytes:
    """A PNG of so many dots per inch as one of `_FEW_DOTS`, with the shades that it has most of."""
    with Image.open(io.BytesIO(png)) as image:
        target = io.BytesIO()
        picture = image.convert("RGB")
        if dots != _FEW_DOTS:
            size = [round(side * _FEW_DOTS / dots) for side in image.size]
            picture = picture.resize(size, Image.Resampling.BOX)  # other ways make twice the bytes
        picture.quantize(_SHADES).save(target, "png", optimize=True)
    return target.getvalue()


def _named(text: str, names: Mapping[str, str]) -> Markup:
    """Text for HTML; the name of a config at its beginning has its whole name as a tooltip."""
    name = text if text in names else text.rpartition(", ")[0]
    if names.get(name, name) == name:
        return _breakable(text)
    return Markup('<abbr title="{}">{}</abbr>{}').format(names[name], _breakable(name), _breakable(text[len(name) :]))


def _breakable(text: str) -> Markup:
    """Text for HTML in which a line may also end inside the name of a config key and before its value."""
    return Markup(escape(text).replace("_", Markup("_<wbr>")).replace("=", Markup("=<wbr>")))


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def render(figure: Figure, kind: Literal["svg", "png"], *, dots: int = _DOTS) -> bytes:
    """A figure as the bytes of a file, the same for the same figure.

    It is laid out when it is drawn first; later pictures of it have their parts in the same places. `Figure.savefig`
    draws a figure that lays itself out twice each time.
    """
    target = io.BytesIO()
    own_dots = figure.dpi
    with rc_context(RC):  # type: ignore[arg-type]
        figure.dpi = dots
        if kind == "svg":
            FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None})  # type: ignore[no-untyped-call]
        else:
            FigureCanvasAgg(figure).print_png(target, metadata={"Software": None})  # type: ignore[no-untyped-call]
    figure.dpi = own_dots
    figure.set_layout_engine("none")
    return target.getvalue()
