"""The configuration reference, written from the dataclasses: `python -m dmd.config.reference > docs/configuration.md`.

The text under a field of a config dataclass is its documentation, there and here.
"""

import ast
import inspect
import sys
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from dmd.config.preset_files import preset_comment, preset_names
from dmd.config.schema import Config

INTRODUCTION = """\
# Configuration reference

Written by `python -m dmd.config.reference > docs/configuration.md`; edit the dataclasses, not this page.

A value is set in three ways. The later one wins:

1. `--preset NAME`: one of the presets below (`dmd presets NAME` prints it in full). Without one, the defaults.
2. `--config FILE`: a YAML file of yours with sections and keys as below, as few as you like.
3. `section.key=value` behind the command, also written `section.key = value`.

```sh
dmd train --preset mosi-aligned --data shards/mosi --run runs/first train.seed=1112 train.learning_rate=5e-5
dmd train --preset mosi-aligned --config mine.yaml --data shards/mosi --run runs/mine
```

`--print-config` prints the whole config that a command would use as YAML, with what each value means, and marks what is
not the default. `--config` reads that back, and the config of a run too: `--config runs/first/run.json`.

`dmd config` lists all keys, `dmd config train.learning_rate` explains one. An unknown key is an error that names the
nearest one. A data set of your own needs no preset: feature dims and lengths come from the shards.

`dmd completion bash` (or zsh, fish) prints a script by which the shell completes commands, options, presets and keys.
Making it takes seconds, so write it to a file once, and again after an upgrade; `dmd completion --help` says where the
other shells look:

```sh
mkdir -p ~/.local/share/bash-completion/completions
dmd completion bash > ~/.local/share/bash-completion/completions/dmd
```
"""


def field_documents(section: type) -> dict[str, str]:
    """What is written under each field of a dataclass, on one line."""
    tree = ast.parse(inspect.cleandoc(inspect.getsource(section))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and documented:
            assert isinstance(after, ast.Expr)
            assert isinstance(after.value, ast.Constant)
            found[node.target.id] = " ".join(str(after.value.value).split())
    return found


def type_name(annotation: Any) -> str:
    """A type as a reader of YAML calls it."""
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(map(type_name, get_args(annotation)))
    if annotation is NoneType:
        return "null"
    return annotation.__name__ if get_origin(annotation) is None else str(annotation)


def reference() -> str:
    """The whole page as Markdown."""
    lines = [INTRODUCTION, "## Presets", "", "| preset | |", "|---|---|"]
    lines += [f"| `{name}` | {preset_comment(name)} |" for name in preset_names()]
    for section in fields(Config):
        kind = section.type
        assert isinstance(kind, type)
        about = " ".join((kind.__doc__ or "").split())
        lines += ["", f"## {section.name}", "", about, "", "| key | type | default | |", "|---|---|---|---|"]
        documents = field_documents(kind)
        for key in fields(kind):
            assert key.default is not MISSING
            default = "null" if key.default is None else str(key.default).lower() if key.type is bool else key.default
            text = documents[key.name].replace("|", "\\|")
            lines.append(f"| `{section.name}.{key.name}` | {type_name(key.type)} | `{default}` | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
