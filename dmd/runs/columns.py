"""What can be shown of runs: one row a column, with its key, its heading, its values and which of them come first.

The keys of `--sort` and `--where` are those of the columns, names of metrics, and config keys, with their section or,
where that is clear, without it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml

from data_shards.command_line import did_you_mean
from data_shards.progress import duration
from dmd.metrics import heading, in_view, known_metrics, metric, show
from dmd.report.identity import BOOKKEEPING, differing_keys, short_names, value_text
from dmd.runs.summary import RunSummary

ABSENT = "–"
LOSS = "loss"
"""Key of the validation loss, by which checkpoints are selected."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """Something of a run that can be shown, sorted and filtered by."""

    key: str
    heading: str
    value: Callable[[RunSummary], Any]
    """None where a run has none."""
    text: Callable[[Any], str] = str
    """A value as people read it."""
    is_number: bool = False
    mark: Callable[[RunSummary], str] = lambda run: ""
    """What stands before the text of a run's value."""
    worth: int = 2
    """Which columns a narrow terminal keeps: those of the lowest number."""
    lower_first: bool = True
    """Whether the lowest value stands first: the best one of a metric."""

    def cell(self, run: RunSummary) -> str:
        """What the table shows."""
        value = self.value(run)
        return ABSENT if value is None else f"{self.mark(run)}{self.text(value)}"


def table_columns(runs: Sequence[RunSummary]) -> list[Column]:
    """The columns of a table of runs, the most telling first: what tells them apart, and what they reached."""
    apart = distinguishing_keys(runs)
    titles = short_names(apart)
    basic = _basic_columns()
    names = in_view("headline", [name for run in runs if run.best for name in run.best.metrics])
    return [
        basic["run"],
        basic["state"],
        *(basic[key] for key in ("tags", "data", "preset") if _differ(runs, basic[key])),
        *(_config_column(key, key if titles[key] in basic else titles[key]) for key in apart),
        basic["seed"],
        *(metric_column(name, worth=0 if number == 0 else 3) for number, name in enumerate(names)),
        *([] if names else [_loss_column(runs)]),
        *(basic[key] for key in ("best_step", "epochs", "steps", "time", "started")),
    ]


def distinguishing_keys(runs: Sequence[RunSummary]) -> list[str]:
    """Config keys whose values are not the same in all runs, but for the seed, those that change no number, and those
    that the preset says."""
    keys = [
        key for key in differing_keys([run.config for run in runs]) if key not in BOOKKEEPING and _concerns(key, runs)
    ]
    presets = {run.preset for run in runs}
    by_preset = [[run.config for run in runs if run.preset == preset] for preset in presets if preset]
    if "" in presets or len(presets) < 2:
        return keys
    within = {key for configs in by_preset for key in differing_keys(configs)}
    return [key for key in keys if key in within]


def _concerns(key: str, runs: Sequence[RunSummary]) -> bool:
    """Whether a key means anything for some of the runs: text.* is of encoders of token ids."""
    return not key.startswith("text.") or any(not run.info.get("dims", {}).get("text") for run in runs)


def find_column(key: str, runs: Sequence[RunSummary]) -> Column:
    """The column of a key.

    Raises:
        ValueError: an unknown key, or one that two sections have.
    """
    basic = _basic_columns()
    if key in basic:
        return basic[key]
    if key == LOSS:
        return _loss_column(runs)
    names = known_metrics({name for run in runs if run.best for name in run.best.metrics})
    by_heading = {heading(name).lower(): name for name in names} | {metric(name).title.lower(): name for name in names}
    name = by_heading.get(key.lower().removeprefix("valid "), key)
    if name in names:
        return metric_column(name)
    keys, apart = list(dict.fromkeys(known for run in runs for known in run.config)), distinguishing_keys(runs)
    meant = [known for known in keys if key in (known, known.partition(".")[2])]
    for choice in (meant, [one for one in meant if one in apart], [one for one in meant if _concerns(one, runs)]):
        if len(choice) == 1:
            return _config_column(choice[0], short_names(apart).get(choice[0], choice[0]))
    if meant:
        raise ValueError(f"{key!r} may be {' or '.join(meant)}; name one with its section")
    known = [*basic, LOSS, *names, *keys, *(one.partition(".")[2] for one in keys)]
    choice_of_all = f"; give {', '.join([*basic, LOSS, *names])}, or a config key"
    raise ValueError(f"there is no column {key!r}{did_you_mean(key, known) or choice_of_all}")


def sort_runs(runs: Sequence[RunSummary], column: Column, *, reverse: bool = False) -> list[RunSummary]:
    """Runs by a column, the best or lowest first; those without a value are last whatever the direction."""
    having = [run for run in runs if not _is_absent(column.value(run))]
    ascending = sorted(having, key=lambda run: _order(column.value(run)), reverse=column.lower_first == reverse)
    return [*ascending, *(run for run in runs if _is_absent(column.value(run)))]


def matches(run: RunSummary, column: Column, text: str) -> bool:
    """Whether a run has the value that a text says."""
    value = column.value(run)
    if isinstance(value, tuple):
        return text in value
    if value is None:
        return text.lower() in ("", "none", "null")
    if isinstance(value, str):
        return value == text
    return bool(value == _parsed(text)) or column.text(value) == text


def _parsed(text: str) -> Any:
    """A value of the command line, read as YAML, but for numbers such as 1e-4, which YAML takes for words."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _order(value: Any) -> tuple[bool, Any]:
    """A sort key for values that may be of different types: numbers before words."""
    is_number = isinstance(value, int | float)
    return not is_number, value if is_number or isinstance(value, datetime | tuple) else str(value)


def _differ(runs: Sequence[RunSummary], column: Column) -> bool:
    """Whether a column says anything: not the same of all runs, or tags at all."""
    values = {column.value(run) for run in runs}
    return len(values) > 1 or (column.key == "tags" and bool(values - {None}))


def _basic_columns() -> dict[str, Column]:
    columns = (
        Column(key="run", heading="run", value=lambda run: str(run.path)),
        Column(key="state", heading="state", value=lambda run: run.state),
        Column(key="tags", heading="tags", value=lambda run: run.tags or None, text=", ".join),
        Column(key="data", heading="data", value=lambda run: run.data),
        Column(key="preset", heading="preset", value=lambda run: run.preset or None),
        Column(key="seed", heading="seed", value=lambda run: run.seed, is_number=True),
        Column(
            key="best_step",
            heading="best step",
            worth=4,
            value=lambda run: None if run.best is None else run.best.step,
            is_number=True,
        ),
        Column(key="epochs", heading="epochs", value=lambda run: run.epochs, is_number=True, worth=4),
        Column(key="steps", heading="steps", value=lambda run: run.step, is_number=True, worth=5),
        Column(
            key="time",
            heading="time",
            value=lambda run: run.seconds,
            text=duration,
            is_number=True,
            worth=5,
            mark=lambda run: "" if run.seconds_are_all else ">= ",
        ),
        Column(key="started", heading="started", value=lambda run: run.started, text=_local, is_number=True, worth=5),
    )
    return {column.key: column for column in columns}


def metric_column(name: str, *, worth: int = 3) -> Column:
    """The column of a metric of the best validation."""
    return Column(
        key=name,
        heading=f"valid {heading(name)}",
        value=lambda run: None if run.best is None else run.best.metrics.get(name),
        text=lambda value: show(name, value),
        is_number=True,
        worth=worth,
        lower_first=not metric(name).higher_is_better,
    )


def _loss_column(runs: Sequence[RunSummary]) -> Column:
    titles = list(dict.fromkeys(run.loss_title for run in runs))
    return Column(
        key=LOSS,
        heading=f"valid {' or '.join(titles)}",
        value=lambda run: None if run.best is None else run.best.loss,
        text=lambda value: f"{value:.4f}",
        is_number=True,
        worth=0,
    )


def _config_column(key: str, title: str) -> Column:
    return Column(key=key, heading=title, value=lambda run: run.config.get(key), text=_short_text, worth=1)


def _short_text(value: Any) -> str:
    """A config value as it fits a column."""
    return f"{value:g}" if isinstance(value, float) else value_text(value)


def _local(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
