"""The house: every module imports, floors are kept, the network needs torch alone, help is everywhere."""

import ast
import configparser
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import dmd
from cluster.commands import experiment, tune
from cluster.parsers import experiment_parser, tune_parser
from dmd.cli import GROUPS, main
from tests.support.imports import FLOORS, MODULES, ROOT, dotted, import_graph, reachable


def names(path: Path) -> list[str]:
    """Modules that a file imports, anywhere in it."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    return found


def circles(imports: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of modules that all reach each other by imports (`imports` maps a module to those that it imports)."""
    reached = reachable(imports)
    return {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in imports
        if module in reached[module]
    }


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_every_module_imports():
    names = [dotted(path) for path in MODULES] + [dotted(path) for path in sorted((ROOT / "benchmarks").glob("*.py"))]
    assert len(names) > 30
    code = "import importlib\nfor name in " + repr(names) + ": importlib.import_module(name)"
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_imports_only_go_down():
    for path in MODULES:
        own = FLOORS.index(path.relative_to(ROOT).parts[0])
        for name in names(path):
            top = name.split(".")[0]
            assert top not in FLOORS or FLOORS.index(top) <= own, f"{path} imports {name}"
            assert own > 1 or top not in ("deepspeed", "ray"), f"{path} imports {name}"
            assert own > 0 or top != "torch", f"{path} imports {name}"


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == set()
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d", "a"}}) == {frozenset("bc"), frozenset("d")}


def test_no_import_goes_in_a_circle():
    assert circles(import_graph()) == set()


def test_the_network_works_with_torch_alone():
    """In a Python that cannot import anything else of ours or the stack's, a DMD still trains."""
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in BLOCKED: raise ImportError(name + ' is blocked')
BLOCKED = {'deepspeed', 'ray', 'webdataset', 'transformers', 'pyarrow', 'data_shards', 'pydantic', 'tensorboard'}
sys.meta_path.insert(0, Block())
import torch
import dmd.metrics
from dmd.losses import Objective, ObjectiveConfig
from dmd.model import DMD, ModelConfig
config = ModelConfig(task="regression", dim=8, heads=2, levels=1)
model = DMD(config, dict(text=3, audio=4, vision=5), dict(text=6, audio=6, vision=6))
labels = torch.ones(1, 2)
loss = Objective(ObjectiveConfig(), config)(model(*(torch.ones(2, 6, n) for n in (3, 4, 5))), labels, labels)
loss['total'].sum().backward()
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_reading_loads_neither_torch_nor_webdataset():
    """So errors and help come at once; writing, indexing and streams load both."""
    code = """
import sys
import data_shards, data_shards.commands, data_shards.tools.verify
import data_shards.reading.reader, data_shards.reading.stream
assert not {'torch', 'webdataset'} & set(sys.modules)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_shards_are_written_and_streamed_where_there_is_no_torch(tmp_path):
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'torch': raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import data_shards
from data_shards.commands import index, shard, verify
assert shard(['--synthetic', '--samples', '20', {str(tmp_path / "shards")!r}]) == 0
assert len(list(data_shards.pipeline({str(tmp_path / "shards")!r}, 'train'))) == 14
assert verify([{str(tmp_path / "shards")!r}]) == index([{str(tmp_path / "shards")!r}]) == 0
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_every_command_has_help(capsys):
    assert main(["--help"]) == 0
    commands = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert {"shard", "verify", "train", "evaluate", "demo"} <= set(commands)
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0, command
        assert f"usage: dmd {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "parser"), [(tune, tune_parser), (experiment, experiment_parser)])
def test_commands_say_what_their_parsers_say(command, parser):
    assert command.__doc__ == parser().description


def test_the_version_is_one(capsys):
    given = configparser.ConfigParser()
    given.read(ROOT / "setup.cfg")
    version = given["metadata"]["version"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dmd-cluster {version}\n"
    assert dmd.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_type_checkers_see_the_names_of_the_package():
    """What `dmd` imports when it is asked for, by `dmd.__getattr__` and under TYPE_CHECKING."""
    seen = {
        alias.asname: node.module
        for node in ast.walk(ast.parse((ROOT / "dmd" / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert seen == dmd._PLACES
    assert {*seen, "__version__", "load"} <= set(dir(dmd))
    for name, module in seen.items():
        assert getattr(dmd, name) is getattr(importlib.import_module(module), name)


def test_the_image_has_every_package():
    given = configparser.ConfigParser()
    given.read(ROOT / "setup.cfg")
    packages = [line.rstrip("*") for line in given["options.packages.find"]["include"].split()]
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("COPY ") and len(line.split()) == 3] == [
        f"COPY {package} {package}" for package in packages
    ]


def test_every_command_has_its_place_in_the_help():
    given = configparser.ConfigParser()
    given.read(ROOT / "setup.cfg")
    lines = given["options.entry_points"]["dmd.commands"].split("\n")
    declared = [line.partition("=")[0].strip() for line in lines if line]
    placed = [name for names in GROUPS.values() for name in names]
    assert sorted(placed) == sorted(declared)


def test_unknown_commands():
    result = subprocess.run([sys.executable, "-m", "dmd.cli", "trian"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "unknown command 'trian' (did you mean train?); known: " in result.stderr


def test_no_test_imports_another():
    """What tests share lies in tests/support."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                parts = [*node.module.split("."), *(alias.name for alias in node.names)]
                assert parts[0] != "tests" or not any(part.startswith("test_") for part in parts), path


def test_no_test_module_decides_for_the_others_how_kernels_run():
    """`benchmarks.offline_driver` turns Triton's interpreter off where it is imported; tests do so in a process of
    their own."""
    assert "benchmarks.offline_driver" not in sys.modules
