"""The subcommand `dmd track`."""

from pathlib import Path

from data_shards.command_line import Parser


def track(argv: list[str]) -> int:
    """Send to trackers what they lack of a run: one that was trained without them, or while a server was away."""
    from dmd.training.logging.trackers.table import TRACKERS

    parser = Parser(prog="dmd track", description=track.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--to", nargs="+", choices=list(TRACKERS), help="trackers (default: those of the run's config)")
    parser.add_argument("--patience", type=float, default=300.0, metavar="S", help="seconds to wait (default: 300)")
    options = parser.parse_args(argv)
    if options.patience <= 0:
        raise ValueError(f"--patience is {options.patience}; it must be above 0")

    from data_shards.sole_writer import sole_writer
    from dmd.documents import read_document
    from dmd.exit_codes import LOST
    from dmd.extras import require
    from dmd.training.logging.trackers.log import read_sent
    from dmd.training.logging.trackers.processes import Senders

    document = read_document(options.run)
    names = options.to or document["config"].get("train", {}).get("trackers")
    if not names:
        raise ValueError(f"{options.run} was trained without trackers; name them, such as --to {' '.join(TRACKERS)}")
    for name in (*names, "tensorboard"):  # which reads the pictures
        require(name, extra="track")
    with sole_writer(options.run):
        complete = Senders(options.run, names, patience=options.patience).close()
        if not complete:
            return LOST
        for name in names:
            sent = read_sent(options.run, name)
            assert sent is not None, "it has all"
            print(f"{name}: has every step up to {sent.step}, in run {sent.identity} at {sent.place}")
        return 0
