"""What the bytes of a set of shards are.

A shard is a plain tar (`tar`) of `.npy` members (`npy`) and one JSON file per sample. `index_file` is the Parquet table
over all samples of all shards, `index_writer` writes it. `schema` has the facts that both share: `Sample`, `ShardInfo`,
`DatasetInfo` and the generation, which is a digest of the content. `padding` fills samples up to one length, `arrays`
reads arrays that other programs wrote, `feature_statistics` has mean and deviation of each feature, `hashing` the one
source of randomness. Writers and readers import from here; nothing here knows where files are.
"""
