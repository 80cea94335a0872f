"""Subcommands of `dmd` that draw: report, missing."""

from pathlib import Path

from data_shards.command_line import Parser
from data_shards.places import place_option
from dmd.evaluation.split_option import DEFAULT_SPLIT, SPLIT_HELP, split_option
from dmd.evaluation.text_encoder_option import add_text_encoder


def report_parser() -> Parser:
    """Arguments of `dmd report`."""
    parser = Parser(
        prog="dmd report",
        description="Write a self-contained page with the figures and tables behind it (PNG, SVG, CSV). Runs that "
        "differ in their seed alone are taken together; other configs are compared with the first. Acc and F1 are in "
        "per cent, in the CSV files too.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/report, with several runs ./report")
    parser.add_argument("--data", type=place_option, metavar="SHARDS", help="other shards than those of the training")
    parser.add_argument("--split", default=DEFAULT_SPLIT, type=split_option, help=SPLIT_HELP)
    parser.add_argument("--projection", default="tsne", choices=["tsne", "pca"], help="default: tsne")
    add_text_encoder(parser)
    parser.add_argument("--unfinished", action="store_true", help="take runs whose training has not ended too")
    parser.add_argument(
        "--small",
        action="store_true",
        help="a page of fewer bytes, to publish: only the first run of each config has a section of its own, and "
        "pictures have few shades",
    )
    return parser


def report(argv: list[str]) -> int:
    """Write one HTML page, and its figures and tables, about one or more runs."""
    options = report_parser().parse_args(argv)

    from dmd.report.build import build_report

    out = options.out or (options.runs[0] / "report" if len(options.runs) == 1 else Path("report"))
    page = build_report(
        options.runs,
        out,
        data=options.data,
        split=options.split,
        method=options.projection,
        unfinished=options.unfinished,
        text_encoder=options.text_encoder,
        small=options.small,
    )
    print(f"{page}: open it in a browser; figures and tables are beside it")
    return 0


def missing(argv: list[str]) -> int:
    """Evaluate runs with parts of their input missing: drop rate x modality, by sample and by frame."""
    parser = Parser(prog="dmd missing", description=missing.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="several: seeds of one config, as a mean")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/missing, with several runs ./missing")
    parser.add_argument("--data", type=place_option, metavar="SHARDS", help="other shards than those of the training")
    parser.add_argument("--split", default=DEFAULT_SPLIT, type=split_option, help=SPLIT_HELP)
    parser.add_argument("--rates", type=float, nargs="+", metavar="R", help="default: 0 0.1 0.3 0.5 0.7 0.9 1")
    parser.add_argument("--unit", choices=["sample", "frame"], help="drop by this alone (default: both)")
    parser.add_argument("--seed", type=int, default=0, help="of what is dropped (default: 0)")
    add_text_encoder(parser)
    options = parser.parse_args(argv)

    from dmd.report.missing import RATES, UNITS, missing_page

    out = options.out or (options.runs[0] / "missing" if len(options.runs) == 1 else Path("missing"))
    page = missing_page(
        options.runs,
        out,
        data=options.data,
        split=options.split,
        rates=options.rates or RATES,
        units=(options.unit,) if options.unit else UNITS,
        seed=options.seed,
        text_encoder=options.text_encoder,
    )
    print(f"{page}: open it in a browser; figures and tables are beside it")
    return 0
