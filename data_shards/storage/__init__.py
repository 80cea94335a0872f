"""Where the files of a set of shards are: a local directory, or a URL whose files come through the node's cache.

`store.open_store` returns a `Store`, which opens local files, or streams. Behind a URL it uses `remote` (fsspec: ranged
reads, streams, checked downloads, uploads) and, for files, `cache` (checksummed copies, shared by all processes of a
node, bounded in size).
`folder.open_folder` returns a `Folder`, in which results are written file by file.
"""
