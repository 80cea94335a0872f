"""The connection to a Ray cluster, one training on it, and numbered tasks on its nodes.

`session` connects, or starts a cluster of this machine, with its token (`access`), and checks all nodes. `resources`
computes how many trials fit. `trial` runs one training with Ray Train, which starts `worker` on every rank and makes
their process group by `process_group`; `rank_endings` says which ends of ranks it starts them again after. `patience`
ends a wait without end, `stopping` takes Ctrl-C and SIGTERM, `stop_flag` carries such a request to the ranks. `tasks`
is the executor of numbered tasks. API: `session.cluster`, `resources.TrialSize`, `trial.run_training`,
`tasks.RayTasks`.
"""
