"""The floor of Ray: many trainings on one cluster, shards that its nodes write, and jobs for a cluster elsewhere.

`commands` has `dmd shard`, `dmd tune`, `dmd experiment` and `dmd submit`. `sharding` is the first of them; it leaves
work without a cluster to `data_shards`. `parsers` says what the next two take, `request` makes one checked request of
it. `experiments.orchestrate` runs it: `ray_runtime` connects to a cluster and trains one config on it (a trial),
`search` chooses the configs and records how they do, `experiments` brings both together, repeats the best config over
seeds, and writes the tables. `jobs` sends such a command to a cluster that only its dashboard reaches.

Files for users: `spaces` (search spaces), `autoscaler`, `kuberay` and `slurm` (clusters). Model selection sees the
validation split only (`experiments.selection_shards`).
"""
