"""`dmd shard --address`: the shards of a set are written by the nodes of a Ray cluster, to shared storage or a bucket.

`parser` adds the cluster's options to those of `data_shards.commands`. `command` connects and runs the same build as in
one process; `tasks` is the executor that it is given: one Ray task per file that is looked at and per shard. Index and
publication stay with the driver. No module here but `command` needs more than Ray and `data_shards`, since each worker
process of the cluster loads `tasks`. API: `parser.shard_parser`, `command.shard_on_cluster`, `tasks.RayTasks`.
"""
