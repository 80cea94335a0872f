"""Draws docs/architecture.svg from the imports of the code.

    python -m tests.support.architecture > docs/architecture.svg

A band is a floor and a box a package. The modules beside a floor's packages are in two boxes: those that use packages
(entry points) and those that packages use (shared); one that does both has a box of its own. An arrow is an import
inside a floor; it is left out where other arrows lead to the same box. What a box imports from lower floors is its
small print. Numbers are the stations of a sample's way, which docs/architecture.md explains.
"""

from collections import Counter
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from statistics import mean
from textwrap import wrap

from tests.support.imports import FLOORS, MODULES, dotted, import_graph, reachable

WAY = (
    "data_shards.sources.mmsa",
    "data_shards.writing.build",
    "data_shards.reading.shuffle",
    "data_shards.reading.reader",
    "dmd.data.loader",
    "dmd.model.dmd",
    "dmd.losses.objective",
    "dmd.training.step",
    "dmd.checkpoint.writer",
    "dmd.inference.outputs",
)
"""The modules that a sample passes, from a feature pickle to its prediction."""
TITLES = {
    "cluster": "cluster: many trainings on a Ray cluster",
    "launch": "launch: the ranks of one training, by DeepSpeed",
    "dmd": "dmd: network, objective, training, results",
    "data_shards": "data_shards: shards, index, sample order; no torch",
}
COLOURS = {"cluster": "#7b4ea3", "launch": "#1f6fb5", "dmd": "#2b7a4b", "data_shards": "#8a6d1c"}
WAY_COLOUR = "#e2571e"
BOX, GAP, ROW_GAP, LINE, PASSAGE = 200, 24, 28, 13, 6
"""Pixels: of a box, between boxes, between rows, of a line of text, of an arrow that passes a row."""

Graph = dict[str, set[str]]


@dataclass(frozen=True, kw_only=True)
class Arrow:
    """An import inside a floor."""

    places: tuple[str, ...]
    """Names of its upper box, of its passages through rows, and of its lower box."""
    up: bool
    """Whether the lower box imports the upper one."""


@dataclass(frozen=True)
class Place:
    """A box, or an arrow's passage through a row (without a name)."""

    x: float
    y: float
    width: float
    height: float
    name: str = ""
    lines: tuple[str, ...] = ()


def boxes_of(imports: Graph) -> dict[str, str]:
    """The box of every module."""
    packages = {dotted(path) for path in MODULES if path.name == "__init__.py"} - set(FLOORS)
    boxes = {module: ".".join(module.split(".")[:2]) for module in imports if imports[module] or module not in FLOORS}
    beside = {module for module, box in boxes.items() if box not in packages}
    reached = reachable(imports)
    for module in beside:
        floor = module.split(".")[0]
        own = {name for name in imports if name.split(".")[0] == floor and name not in beside}
        uses, used = reached[module] & own, any(module in imports[name] for name in own)
        if not (uses and used):
            boxes[module] = f"{floor} entry points" if uses else f"{floor} shared"
    return boxes


def box_graph(imports: Graph, boxes: dict[str, str], floor: str) -> tuple[Graph, list[tuple[str, str]]]:
    """The imports between the boxes of a floor without circles, and those that were taken out: the weakest ones.

    Modules do not import each other in circles, but boxes may.
    """
    own = [module for module in imports if _floor(module) == floor and module in boxes]
    weights: Counter[tuple[str, str]] = Counter()
    for module in own:
        weights.update((boxes[module], boxes[other]) for other in imports[module] & set(own))
    graph: Graph = {boxes[module]: set() for module in own}
    for box, other in weights:
        graph[box] |= {other} - {box}
    back: list[tuple[str, str]] = []
    while True:
        reached = reachable(graph)
        circles = [(box, other) for box, others in graph.items() for other in others if box in reached[other]]
        if not circles:
            return graph, sorted(back)
        back.append(min(circles, key=lambda pair: (weights[pair], not pair[1].endswith("commands"), pair)))
        graph[back[-1][0]].remove(back[-1][1])


def essential(graph: Graph) -> list[tuple[str, str]]:
    """The imports that do not follow from others."""
    reached = reachable(graph)
    return sorted(
        (box, other)
        for box, others in graph.items()
        for other in others
        if not any(other in reached[between] for between in others)
    )


def ranks_of(graph: Graph) -> dict[str, int]:
    """The row of every box from below: above all that it imports."""
    ranks: dict[str, int] = {}
    for box in sorted(graph, key=lambda box: len(reachable(graph)[box])):
        ranks[box] = 1 + max((ranks[other] for other in graph[box]), default=-1)
    return ranks


def lines_of(box: str, imports: Graph, boxes: dict[str, str]) -> tuple[str, ...]:
    """The small print of a box: its modules where it is no package, and what it imports from lower floors."""
    floor, own = _floor(box), sorted(module for module in boxes if boxes[module] == box)
    texts = [", ".join(module.partition(".")[2] or module for module in own)] if " " in box else []
    for lower in FLOORS[: FLOORS.index(floor)][::-1]:
        names = {boxes[other] for module in own for other in imports[module] if _floor(other) == lower}
        if names:
            texts.append(f"{lower}: " + ", ".join(sorted(name.removeprefix(lower).strip(" .") for name in names)))
    return tuple(line for text in texts for line in wrap(text, 36))


def rows_of(graph: Graph, back: list[tuple[str, str]]) -> tuple[list[list[str]], list[Arrow]]:
    """The boxes of a floor in rows, the highest first, and its arrows; those of `back` lead up."""
    ranks = ranks_of(graph)
    rows: list[list[str]] = [[] for _ in range(max(ranks.values()) + 1)]
    for box in sorted(graph):
        rows[-1 - ranks[box]].append(box)
    arrows: list[Arrow] = []
    for box, other in [*essential(graph), *back]:
        low, high = sorted((box, other), key=lambda name: ranks[name])
        passages = {rank: f"|{len(arrows)}|{rank}" for rank in range(ranks[high] - 1, ranks[low], -1)}
        for rank, name in passages.items():
            rows[-1 - rank].append(name)
        arrows.append(Arrow(places=(high, *passages.values(), low), up=box == low))
    for _ in range(4):  # each place goes below the middle of those that lead to it, then above those that it leads to
        for number in [*range(1, len(rows)), *range(len(rows) - 2, -1, -1)]:
            near = {name: set[str]() for name in rows[number]}
            for arrow in arrows:
                for upper, lower in pairwise(arrow.places):
                    near.get(upper, set()).add(lower)
                    near.get(lower, set()).add(upper)
            rows[number] = sorted(rows[number], key=lambda name: (_middle(near[name], rows), name))
    return rows, arrows


def _middle(near: set[str], rows: list[list[str]]) -> float:
    """The mean place in their rows, from 0 (left) to 1 (right), of what a place is joined to."""
    places = [(row.index(name) + 0.5) / len(row) for row in rows for name in row if name in near]
    return round(mean(places), 6) if places else 0.5


def placed(rows: list[list[str]], top: float, lines: dict[str, tuple[str, ...]], width: float) -> dict[str, Place]:
    """Where the boxes and passages of a floor are."""
    places: dict[str, Place] = {}
    y = top + 40
    for row in rows:
        height = 30 + LINE * max(len(lines.get(name, ())) for name in row)
        x = (width - _width(row)) / 2
        for name in row:
            own = BOX if name in lines else PASSAGE
            places[name] = Place(x, y, own, height, name if name in lines else "", lines.get(name, ()))
            x += own + GAP
        y += height + ROW_GAP
    return places


def _width(row: list[str]) -> float:
    return sum(PASSAGE if name.startswith("|") else BOX for name in row) + GAP * (len(row) - 1)


def _floor(name: str) -> str:
    return name.split(" ")[0].split(".")[0]


def arrow_path(arrow: Arrow, places: dict[str, Place]) -> str:
    """From the bottom of a box, through its passages, to the top of a lower one; or back."""
    spots = [places[name] for name in arrow.places]
    aside = 24 if arrow.up else 0
    x, y = spots[0].x + spots[0].width / 2 + aside, spots[0].y + spots[0].height
    points = [(x, y)]
    for place in spots[1:]:
        end, middle = place.x + place.width / 2 + aside * bool(place.name), (y + place.y) / 2
        points += [(x, middle), (end, middle), (end, place.y)]
        x, y = end, place.y + place.height
        if not place.name:  # straight through the row
            points += [(x, y), (x, y), (x, y)]
    if arrow.up:
        points.reverse()
    return "M" + " C".join(
        " ".join(f"{x:.0f} {y:.0f}" for x, y in points[start:end])
        for start, end in [(0, 1), *((i, i + 3) for i in range(1, len(points), 3))]
    )


def drawing() -> str:
    """The picture as SVG."""
    imports = import_graph()
    boxes = boxes_of(imports)
    floors: dict[str, tuple[list[list[str]], list[Arrow], dict[str, tuple[str, ...]]]] = {}
    for floor in FLOORS[::-1]:
        graph, back = box_graph(imports, boxes, floor)
        floors[floor] = *rows_of(graph, back), {box: lines_of(box, imports, boxes) for box in graph}
    width = 60 + max(_width(row) for rows, *_ in floors.values() for row in rows)
    bands, arrows, y = [], [], 40.0
    places: dict[str, Place] = {}
    for floor, (rows, own_arrows, lines) in floors.items():
        own = placed(rows, y, lines, width)
        bottom = max(place.y + place.height for place in own.values()) + 20
        colour = COLOURS[floor]
        bands.append(
            f'<rect x="8" y="{y:.0f}" width="{width - 16:.0f}" height="{bottom - y:.0f}" rx="8" fill="{colour}" '
            f'fill-opacity="0.09"/>\n<text x="22" y="{y + 24:.0f}" font-size="16" font-weight="bold" fill="{colour}">'
            f"{escape(TITLES[floor])}</text>"
        )
        for arrow in own_arrows:
            dashes = ' stroke-dasharray="5 3"' if arrow.up else ""
            arrows.append(
                f'<path d="{arrow_path(arrow, own)}" fill="none" stroke="{colour}" stroke-opacity="0.75" '
                f'stroke-width="1.3"{dashes} marker-end="url(#{floor})"/>'
            )
        places |= own
        y = bottom + 12
    stretches, badges = _way(places, boxes)
    drawn = [_box(place) for _, place in sorted(places.items()) if place.name]
    body = [_legend(), *bands, *arrows, *stretches, *drawn, *badges]
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="{size}" markerHeight="{size}" '
        f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{colour}"/></marker>'
        for name, colour, size in [*((floor, COLOURS[floor], 8) for floor in FLOORS), ("way", WAY_COLOUR, 4)]
    )
    size = f'viewBox="0 0 {width:.0f} {y:.0f}" width="{width:.0f}" height="{y:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif">\n'
        f"<title>Floors, packages, imports, and the way of a sample</title>\n<defs>{heads}</defs>\n"
        '<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _legend() -> str:
    words = "arrow: imports   |   dashed: against the order of rows   |   small print: imports from lower floors   |   "
    return (
        f'<text x="22" y="25" font-size="12" fill="#333333">{words}'
        f'<tspan fill="{WAY_COLOUR}" font-weight="bold">numbers: the way of a sample</tspan></text>'
    )


def _box(place: Place) -> str:
    colour = COLOURS[_floor(place.name)]
    x, y = f"{place.x + 10:.0f}", place.y
    text = "".join(
        f'\n<text x="{x}" y="{y + 34 + LINE * number:.0f}" font-size="10" fill="#555555">{escape(line)}</text>'
        for number, line in enumerate(place.lines)
    )
    return (
        f'<rect x="{place.x:.0f}" y="{y:.0f}" width="{place.width:.0f}" height="{place.height:.0f}" rx="5" '
        f'fill="#ffffff" stroke="{colour}"/>\n<text x="{x}" y="{y + 18:.0f}" font-size="12.5" font-weight="bold" '
        f'fill="{colour}">{escape(place.name)}</text>{text}'
    )


def _way(places: dict[str, Place], boxes: dict[str, str]) -> tuple[list[str], list[str]]:
    """The way of a sample: lines from box to box, and the numbers on the boxes."""
    lines, badges = [], []
    before: tuple[float, float] | None = None
    for number, module in enumerate(WAY, 1):
        place = places[boxes[module]]
        x, y = place.x + place.width - 2, place.y + place.height / 2
        if before and before[1] != y:
            far = max(before[0], x) + 40 + abs(y - before[1]) / 5
            lines.append(
                f'<path d="M{before[0]:.0f} {before[1]:.0f} C{far:.0f} {before[1]:.0f} {far:.0f} {y:.0f} {x + 12:.0f} '
                f'{y:.0f}" fill="none" stroke="{WAY_COLOUR}" stroke-width="3" marker-end="url(#way)"/>'
            )
        badge = x - 24 * (boxes[module] == boxes[WAY[number % len(WAY)]])  # makes room for the next one
        badges.append(
            f'<circle cx="{badge:.0f}" cy="{y:.0f}" r="10" fill="{WAY_COLOUR}"/>\n'
            f'<text x="{badge:.0f}" y="{y + 4:.0f}" font-size="11" '
            f'font-weight="bold" fill="#ffffff" text-anchor="middle">{number}</text>'
        )
        before = x, y
    return lines, badges


if __name__ == "__main__":
    print(drawing(), end="")
