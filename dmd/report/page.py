"""The page of a report: one HTML file that loads nothing else, from sections of text, tables and figures."""

import base64
import io
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from matplotlib import rc_context
from matplotlib.figure import Figure

from dmd.report.style import RC
from dmd.report.tables import Table


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with the name of its files and a sentence that says what it shows."""

    name: str
    figure: Figure
    caption: str


@dataclass(kw_only=True)
class Section:
    """A part of the page; its files lie in the folder `anchor`."""

    anchor: str
    title: str
    text: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def write_page(out: Path, title: str, summary: str, sections: list[Section]) -> Path:
    """Write `out/index.html` and, under `out/ANCHOR/`, every figure as PNG and SVG and every table as CSV."""
    embedded: dict[int, str] = {}
    for section in sections:
        folder = out / section.anchor
        folder.mkdir(parents=True, exist_ok=True)
        for table in section.tables:
            (folder / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
        for picture in section.pictures:
            svg = render(picture.figure, "svg")
            (folder / f"{picture.name}.svg").write_bytes(svg)
            picture.figure.set_layout_engine("none")  # its parts have their places now
            (folder / f"{picture.name}.png").write_bytes(render(picture.figure, "png"))
            embedded[id(picture)] = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    template = files("dmd.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(template).render(
        title=title, summary=summary, sections=sections, source=lambda picture: embedded[id(picture)]
    )
    path = out / "index.html"
    path.write_text(html, encoding="utf-8")
    return path


def render(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a file, the same for the same figure."""
    target = io.BytesIO()
    with rc_context(RC):  # type: ignore[arg-type]
        figure.savefig(target, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return target.getvalue()
