"""Where samples come from: each source offers its splits by count and any run of its samples on demand.

`detect.open_source` looks at a file or directory and opens the source that fits: `mmsa` (MMSA and MulT pickles), `misa`
(MISA and MAG-BERT pickles), `table` (Parquet and Arrow); `synthetic` makes samples. All give samples
(`data_shards.format.schema.Sample`) by the methods of `data_shards.writing.source.Source`. The other modules are shared
parts: `splits`, `fields`, `pickled` and `nested` read a file, `memory` checks that it fits, `conversions` turns its
values into text, numbers and arrays.
"""
