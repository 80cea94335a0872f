"""From a position in an epoch to a batch of samples.

`shuffle` maps a position to the number of a sample, as a pure function of seed and epoch. `index.ShardIndex` maps the
number to a shard and the places of its members. `reader.ShardReader` reads the members with one call per sample,
through `shard_files` (open shards) and `page_cache` (read-ahead), into arrays of `buffer_pool`. API:
`reader.ShardReader`, `index.ShardIndex`, `shuffle.epoch_order`.
"""
