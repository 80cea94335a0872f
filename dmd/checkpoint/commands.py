"""The subcommand `dmd checkpoints`."""

import argparse
import math
from pathlib import Path

from dmd.checkpoint.saver import CHECKPOINTS
from dmd.documents import check_course


def checkpoints(argv: list[str]) -> int:
    """List the checkpoints of a run, the best and the last, and what is wrong with damaged ones; 1 if none is whole."""
    from dmd.checkpoint.format import list_checkpoints, read_state

    parser = argparse.ArgumentParser(prog="dmd checkpoints", description=checkpoints.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    options = parser.parse_args(argv)
    root = options.run / CHECKPOINTS
    found = list_checkpoints(root)
    if not found:
        raise ValueError(f"{options.run} holds no checkpoint; name the directory of a run that has saved one")
    newest = max((info.step for info in found if info.reason is None), default=None)
    best = next((read_state(info.path).get("best_step") for info in found if info.step == newest), None)
    for info in found:
        size = sum(file.stat().st_size for file in info.path.iterdir()) / 2**20 if info.readable else math.nan
        roles = [name for name, has in (("best", info.step == best), ("last", info.step == newest)) if has]
        where = ""
        if info.reason is None:
            state = read_state(info.path)
            check_course(state, str(info.path))
            cursor = state["cursor"]
            where = f"epoch {cursor['epoch']:4d}  step in epoch {cursor['step']:6d}  "
        kind = "DAMAGED" if info.readable else "UNREADABLE"
        status = f"{kind}: {info.reason}" if info.reason else "whole"
        print(f"step {info.step:8d}  {where}{size:9.1f} MiB  {status}{'  <- ' + ', '.join(roles) if roles else ''}")
    return 0 if newest is not None else 1
