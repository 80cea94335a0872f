"""Weights & Biases and MLflow, which get the numbers that TensorBoard gets (`train.trackers`).

A tracker has a process of its own, the `sender`, one at a time (`turn`). It follows metrics.jsonl, and event files for
their pictures, and notes in RUN/trackers/NAME.json what its tracker has, and of which training (`origin`). So a server
that hangs or refuses delays no step, what it has not taken waits in the log, and no step reaches it twice. `processes`
starts and ends senders beside a training; `dmd track RUN` (`command`) does so afterwards. `about` is what a tracker is
told of a run, `log` what there is to send.

    metrics.jsonl, run.json, event files -> sender -> weights_and_biases | mlflow_runs

A new tracker is a file with the methods of `tracker.Tracker`, a row of `table` and a name in `TrackerName`.
"""
