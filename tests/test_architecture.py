"""docs/architecture.md and its picture say what the code is."""

import re

from tests.support.architecture import WAY, drawing
from tests.support.imports import FLOORS, MODULES, ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_picture_is_drawn_from_the_imports_of_today():
    command = "python -m tests.support.architecture > docs/architecture.svg"
    assert (ROOT / "docs" / "architecture.svg").read_text() == drawing(), f"run: {command}"
    assert command in PAGE


def test_the_picture_is_always_the_same():
    assert drawing() == drawing()


def test_the_page_tells_the_way_that_the_picture_shows():
    assert re.findall(r"^\d+\. `([\w.]+)`", PAGE, re.MULTILINE) == list(WAY)


def test_the_page_names_every_package():
    packages = {path.parent for path in MODULES if path.name == "__init__.py"}
    assert len(packages) > len(FLOORS)
    linked = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)#]+/)\)", PAGE)}
    assert {str(path.relative_to(ROOT)) for path in packages - linked} == set()


def test_every_module_that_the_page_names_exists():
    named = re.findall(r"`((?:data_shards|dmd|launch|cluster)(?:\.\w+)+)`", PAGE)
    assert len(named) > len(WAY)
    for name in named:
        path = ROOT.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").exists(), name
