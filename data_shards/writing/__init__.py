"""Builds a set of shards: whole, or not at all, and the same bytes for any number of processes.

`build.build` takes a `source.Source`, as the user declares it (`declared`), and lets the processes of `process_pool`
write the tars to a `destination` (a directory or a URL). `collect` looks at the labels and ids of all shards as they
come, `identity` finds an id that is there twice. The index is replaced last, which makes the new set visible. API:
`build.build`, `source.Source`; `data_shards.external` uses the same parts for tars that are there already.
"""
