"""The floor of Ray: trainings, shards and predictions on a cluster, and jobs for a cluster elsewhere.

`commands` has `dmd train`, `dmd tune`, `dmd experiment`, `dmd submit`, and what `dmd shard`, `dmd predict` and `dmd
evaluate` do with `--address` (`sharding`, `prediction`); `parsers` says what they take, `request`
makes one checked request of it. `experiments.orchestrate` runs it: `ray_runtime` connects to a cluster and trains one
config on it (a trial), `search` chooses the configs and records how they do, `experiments` brings both together,
repeats the best config over seeds, and writes the tables. `jobs` sends such a command to a cluster that only its
dashboard reaches.

Files for users: `spaces` (search spaces), `autoscaler`, `kuberay` and `slurm` (clusters). Model selection sees the
validation split only (`experiments.selection_shards`).
"""
