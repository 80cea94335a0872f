"""The subcommand `dmd checkpoints`."""

import math
from pathlib import Path

from data_shards.command_line import Parser
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.documents import check_course
from dmd.text_tables import table_text


def checkpoints(argv: list[str]) -> int:
    """List the checkpoints of a run, the best and the last, and what is wrong with damaged ones; 1 if none is whole."""
    parser = Parser(prog="dmd checkpoints", description=checkpoints.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    options = parser.parse_args(argv)

    from dmd.checkpoint.format import list_checkpoints, read_state

    root = options.run / CHECKPOINTS
    found = list_checkpoints(root)
    if not found:
        raise ValueError(f"{options.run} holds no checkpoint; name the directory of a run that has saved one")
    newest = max((info.step for info in found if info.reason is None), default=None)
    best = next((read_state(info.path).get("best_step") for info in found if info.step == newest), None)
    rows = []
    for info in found:
        size = sum(file.stat().st_size for file in info.path.iterdir()) / 2**20 if info.readable else math.nan
        roles = [name for name, has in (("best", info.step == best), ("last", info.step == newest)) if has]
        where = ["", ""]
        if info.reason is None:
            state = read_state(info.path)
            check_course(state, str(info.path))
            where = [str(state["cursor"][name]) for name in ("epoch", "step")]
        kind = "DAMAGED" if info.readable else "UNREADABLE"
        status = f"{kind}: {info.reason}" if info.reason else "whole"
        rows.append([str(info.step), *where, f"{size:.1f}", status, ", ".join(roles)])
    header = ["step", "epoch", "step in epoch", "MiB", "state", "role"]
    print(table_text(header, rows, numbers=range(4)))
    return 0 if newest is not None else 1
