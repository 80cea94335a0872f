"""`dmd extract`: clips become features in processes of this machine, or with --address on the nodes of a Ray cluster.

`parser` adds the cluster's options to those of `data_shards.clip_sets`; `command` connects, takes requests to stop, and
hands `data_shards.clip_sets.command` its executor. Features go to the driver, which alone writes. API:
`parser.parse_extract`, `command.extract_here`, `command.extract_on_cluster`.
"""
