"""From a position in an epoch to a batch of samples.

`shuffle` maps a position to the number of a sample, as a pure function of seed and epoch. `index.ShardIndex` maps the
number to a shard and the places of its members. `reader.ShardReader` reads the members with one call per sample,
through `shard_files` (open shards) and `page_cache` (read-ahead), into arrays of `batch_arrays` and `buffer_pool`.
`stream.SampleStream` gives the same batches from shards that it reads from end to end, through the WebDataset iterators
of `tar_scan`, a window of shards at a time. `pipeline` is a WebDataset pipeline over such a stream. API:
`reader.ShardReader`, `stream.SampleStream`, `pipeline.pipeline`, `index.ShardIndex`, `shuffle.epoch_order`.
"""
