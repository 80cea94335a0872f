"""Figures and tables from finished runs: `dmd report RUN [RUN ...]`, `dmd missing RUN`.

`runs` reads the config, the data and every recorded number of a run; `inference` evaluates its best checkpoint on one
split; `groups` finds the runs that are seeds of one config, `ensembles` takes these as one model. Figures are drawn
from those: `curves` and `edges` over the training, `predictions` and `projection` of a split, `compare` over seeds,
`sample_errors` by length, speaker and label (`videos` reads ids), `calibration` of the spread. `tables` has the tables,
`overview` those of all runs, `costs` those of time, memory and energy; `latex` writes them for papers. `statistics` has
intervals and tests, by `resampling`, and what a difference takes, by `power`; `simple_baselines` fits a mean and a
linear model; `published_results` has published numbers. `explorer` has the samples. `style` is how figures look, and
`page` writes one HTML file that loads nothing else. `missing` is a page of its own: metrics with parts of the input
left out. `names` writes docs/names.md, the list of metrics, heads and loss terms.

    runs -> inference -> groups -> figures, tables -> page

API: `build.build_report`, `missing.missing_page`.
"""
