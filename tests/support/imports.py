"""The imports of the four floors, as their source says: for the rules of the house and for its picture."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOORS = ("data_shards", "dmd", "launch", "cluster")
"""From the lowest to the highest."""
MODULES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


def dotted(path: Path) -> str:
    """The name by which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, known: frozenset[str]) -> set[str]:
    """Modules of `known` that a file imports, anywhere in it: also for type checking, and inside functions.

    `from package import name` is the module `package.name` where there is one, else `package`.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            found |= {name if (name := f"{package}.{alias.name}") in known else package for alias in node.names}
    return found & known - {dotted(path)}


def import_graph() -> dict[str, set[str]]:
    """Every module of the floors, and the modules of the floors that it imports."""
    known = frozenset(dotted(path) for path in MODULES)
    return {dotted(path): imported_modules(path, known) for path in MODULES}


def reachable(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """What each node of a graph leads to, by one edge or more."""
    reached: dict[str, set[str]] = {}
    for start in imports:
        seen, ahead = set[str](), list(imports[start])
        while ahead:
            if (name := ahead.pop()) not in seen:
                seen.add(name)
                ahead += imports[name]
        reached[start] = seen
    return reached
