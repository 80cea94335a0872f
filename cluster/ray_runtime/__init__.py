"""One training on a Ray cluster, and the connection to that cluster.

`session` connects, or starts a cluster of this machine, with its token (`access`), and checks all nodes. `resources`
computes how many trials fit. `trial` runs one training with Ray Train, which starts `worker` on every rank and makes
their process group by `process_group`. `patience` ends a wait without end, `stopping` takes Ctrl-C and SIGTERM. API:
`session.cluster`, `resources.TrialSize`, `trial.run_training`.
"""
