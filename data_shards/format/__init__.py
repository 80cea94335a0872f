"""The file formats of a set of shards.

A shard is a tar (`tar`) of `.npy` members (`npy`) and one JSON member per sample. `index_file` reads the Parquet table
over all samples of all shards, `index_writer` writes it. `schema` defines what both hold: `Sample`, `ShardInfo`,
`DatasetInfo`, and the generation, which is a digest of the content. `content_facts` merges what is known of the shards
into what is known of the set, `feature_statistics` computes mean and deviation of each feature. `padding` pads samples
to one length, `arrays` reads arrays of externally created tars, `hashing` is the only source of randomness. Writers and
readers import from here; nothing here opens a set.
"""
