"""Figures and tables from finished runs: `dmd report RUN [RUN ...]`, `dmd missing RUN`.

`runs` reads the config, the data and every recorded number of a run; `inference` evaluates its best checkpoint on one
split; `groups` finds the runs that are seeds of one config, `ensembles` takes these as one model. Figures are drawn
from those: `curves` and `edges` over the training, `predictions` and `projection` of a split, `compare` over seeds,
`sample_errors` by length, speaker and label, `calibration` of the spread. `tables` has the tables, `costs` that of
time, memory and energy, `statistics` the intervals, `published_results` the paper's numbers beside ours. `explorer` has
the samples. `style` is how figures look, and `page` writes one HTML file that loads nothing else. `missing` is a page
of its own: metrics with parts of the input left out. `names` writes docs/names.md, the list of metrics, heads and loss
terms.

    runs -> inference -> groups -> figures, tables -> page

API: `build.build_report`, `missing.missing_page`.
"""
