"""`dmd shard --address`: the shards of a set are written by the nodes of a Ray cluster, to shared storage or a bucket.

`parser` adds the cluster's options to those of `data_shards.commands`. `command` connects and runs the same build as in
one process, with one Ray task (`cluster.ray_runtime.tasks`) per file that is looked at and per shard. Index and
publication stay with the driver. API: `parser.shard_parser`, `command.shard_on_cluster`.
"""
