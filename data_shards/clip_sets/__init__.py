"""From a folder of clips to a directory of Parquet files that `dmd shard` reads: what `dmd extract` does.

`clip_files` finds clips and their transcripts, `jobs` joins them with the rows of a label file, `extract` lets an
executor make the features of each (`data_shards.extraction`), `clip_rows` keeps them as rows of Parquet files, and
`parts` puts the finished set together. Labels are joined last, so other labels cost no extraction. Clips that have
features are not extracted again; one that has none, for whatever reason, is listed with it.

API: `jobs.plan_jobs`, `extract.extract_set`; the command line is in `parser` and `command`.
"""
