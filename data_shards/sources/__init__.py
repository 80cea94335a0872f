"""Where samples come from: each source offers its splits by count and any run of its samples on demand.

`detect.open_source` looks at files or directories and opens the source that fits: `mmsa` (MMSA and MulT pickles),
`misa` (MISA and MAG-BERT pickles), `pickle_files` (many of either), `table` (Parquet and Arrow), `csd` (computational
sequences of the CMU SDK); `arrays` are a program's own; `synthetic` makes samples. `labelled` joins features with the
labels of a csv file (`label_file`). All give samples (`data_shards.format.schema.Sample`) by the methods of
`data_shards.writing.source.Source`. Many files are looked at by tasks of an executor (`data_shards.executor`). The
other modules are shared parts: `paths` lists files, `splits`, `split_file`, `csv_rows`, `fields`, `pickled` and
`nested` read one, `mmsa_fet` knows MMSA-FET's, `memory` checks that it fits, `conversions` turns its values into text,
numbers and arrays, `left_out` names what is not used.
"""
