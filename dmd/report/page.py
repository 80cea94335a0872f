"""The page of a report: one HTML file that loads nothing else, from sections of text, tables and figures."""

import base64
import io
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from dmd.report.latex import latex
from dmd.report.style import RC
from dmd.report.tables import Table

_DOTS, _FEW_DOTS = 150, 110
"""Per inch, of a picture and of one in a small page."""
_SHADES = 128


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


@dataclass(kw_only=True)
class Section:
    """A part of the page; its files lie in the folder `anchor`."""

    anchor: str
    title: str
    text: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def write_page(out: Path, title: str, summary: str, sections: list[Section], *, small: bool = False) -> Path:
    """Write `out/index.html` and, under `out/ANCHOR/`, every figure as PNG and SVG and every table as CSV and
    LaTeX.

    Args:
        small: the page holds pictures of a few shades in the place of vector graphics, a fifth of their bytes.
    """
    embedded: dict[int, str] = {}
    for section in sections:
        folder = out / section.anchor
        folder.mkdir(parents=True, exist_ok=True)
        for table in section.tables:
            (folder / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
            (folder / f"{table.name}.tex").write_text(latex(table), encoding="utf-8")
        for picture in section.pictures:
            svg = render(picture.figure, "svg")
            (folder / f"{picture.name}.svg").write_bytes(svg)
            picture.figure.set_layout_engine("none")  # its parts have their places now
            (folder / f"{picture.name}.png").write_bytes(render(picture.figure, "png"))
            few = few_shades(render(picture.figure, "png", dots=_FEW_DOTS)) if small else b""
            embedded[id(picture)] = _data_url("png", few) if small else _data_url("svg+xml", svg)
    template = files("dmd.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = _breakable
    html = environment.from_string(template).render(
        title=title, summary=summary, sections=sections, source=lambda picture: embedded[id(picture)]
    )
    path = out / "index.html"
    path.write_text(html, encoding="utf-8")
    return path


def few_shades(png: bytes) -> bytes:
    """A PNG with the shades that it has most of."""
    with Image.open(io.BytesIO(png)) as image:
        target = io.BytesIO()
        image.convert("RGB").quantize(_SHADES).save(target, "png", optimize=True)
    return target.getvalue()


def _breakable(text: str) -> Markup:
    """Text for HTML in which a line may also end inside the name of a config key and before its value."""
    return Markup(escape(text).replace("_", Markup("_<wbr>")).replace("=", Markup("=<wbr>")))


def _data_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def render(figure: Figure, kind: str, *, dots: int = _DOTS) -> bytes:
    """A figure as the bytes of a file, the same for the same figure; `dots` per inch."""
    target = io.BytesIO()
    with rc_context(RC):  # type: ignore[arg-type]
        figure.savefig(target, format=kind, dpi=dots, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return target.getvalue()
