"""Subcommands of `dmd` that draw: report."""

import argparse
from pathlib import Path


def report(argv: list[str]) -> int:
    """Write one HTML page, and its figures and tables, about one or more runs."""
    parser = argparse.ArgumentParser(
        prog="dmd report",
        description="Write a self-contained page with the figures and tables behind it (PNG, SVG, CSV). Runs that "
        "differ in their seed alone are taken together; other configs are compared with the first.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/report, with several runs ./report")
    parser.add_argument("--data", type=Path, metavar="SHARDS", help="other shards than those of the training")
    parser.add_argument("--split", default="test", choices=["train", "valid", "test"], help="default: test")
    parser.add_argument("--projection", default="tsne", choices=["tsne", "pca"], help="default: tsne")
    parser.add_argument("--unfinished", action="store_true", help="take runs whose training has not ended too")
    options = parser.parse_args(argv)

    from dmd.report.build import build_report

    out = options.out or (options.runs[0] / "report" if len(options.runs) == 1 else Path("report"))
    page = build_report(
        options.runs, out, data=options.data, split=options.split, method=options.projection,
        unfinished=options.unfinished,
    )  # fmt: skip
    print(f"{page}: open it in a browser; figures and tables are beside it")
    return 0
