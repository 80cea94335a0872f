"""The floor of data: feature files become WebDataset shards with an index, and samples are read from them by number.

A sample's way: `sources` reads a pickle or a table (`safe_pickle` lets no code run), `writing` turns it into tars and
one `index.parquet` (`format` says what their bytes are), `storage` finds both in a directory or behind a URL, `reading`
gives batches of samples in the order of an epoch. `external` writes an index for externally created tars in place,
`tools` checks and describes a set. Numpy, pyarrow and webdataset; no torch.

API: `writing.build.build`, `external.index_tars.index_tars`, `reading.reader.ShardReader`, `reading.index.ShardIndex`,
`reading.shuffle.epoch_order`, `tools.verify.verify`, `tools.summary.summarize`. Every function that takes shards takes
a `places.Place`, a path or a URL. `durable` and `sole_writer` serve all floors: whole files, one writer per directory.
Modules are imported by their own names, so that nothing is loaded that is not used.
"""
