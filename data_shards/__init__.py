"""The data package: feature files become WebDataset shards with an index, and samples are read from them by number.

A sample's way: `sources` reads it from a pickle or a table (`safe_pickle` runs no code), `writing` writes it into a tar
and a row of `index.parquet` (`format` defines their bytes), `storage` opens both in a directory or behind a URL, and
`reading` returns batches of samples in the order of an epoch. `external` writes an index for externally created tars in
place, `tools` checks and describes a set. Needs numpy, pyarrow, fsspec (for URLs), matplotlib (for the picture of `dmd
inspect`) and rich (for progress bars); no torch.

API: `pipeline`, `writing.build.build`, `external.index_tars.index_tars`, `reading.reader.ShardReader`,
`reading.stream.SampleStream`, `reading.index.ShardIndex`, `reading.shuffle.epoch_order`, `tools.verify.verify`,
`tools.summary.summarize`. Every function that takes shards takes a `places.Place`, a path or a URL. `durable`,
`sole_writer` and `executor` serve all packages: atomic files, one writer per directory, where tasks run. Modules are
imported by their own names, so that nothing is loaded that is not used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import webdataset as wds

    from data_shards.places import PlaceLike


def pipeline(shards: "PlaceLike", split: str, **options: Any) -> "wds.DataPipeline":
    """One rank's samples of one epoch, exactly once and in our order, as a WebDataset pipeline; the options are those
    of `data_shards.reading.pipeline.pipeline`."""
    from data_shards.reading.pipeline import pipeline as make_pipeline

    return make_pipeline(shards, split, **options)
