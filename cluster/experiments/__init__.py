"""What `dmd tune`, `dmd experiment` and `dmd train --address` do, from the request to the tables.

`orchestrate` has both, step by step. `connection` connects to the cluster and prepares it; `selection_shards` copies
the shards without their test split; `tune` searches on that copy with Ray Tune; `seed_runs` trains configs over seeds
and evaluates each once on the test split; `drivers` are the processes that both start, one per training; `results`
writes the tables. What was done before is read from the experiment's directory, so the same command continues.
`training` is one training by itself.
"""
