"""Builds a set of shards: completely or not at all, bitwise identical wherever its tasks run.

`build.build` takes a `source.Source`, with the user's declaration of labels and ids (`declared_source`). The tasks of
an executor (`process_pool`, or a cluster's) write the tars to a `destination` (a directory or a URL).
`label_and_id_checks` checks each shard as it comes, `duplicate_ids` finds duplicates among all ids. The index is
replaced last: then the new set is visible. API: `build.build`, `source.Source`; `data_shards.external` uses the same
parts for tars that are there already.
"""
