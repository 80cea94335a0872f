"""The video of a sample, as its id says it: samples of one video are alike."""

from collections.abc import Sequence

from data_shards.sources.csd.files import without_number
from data_shards.sources.label_table import ID_SEPARATOR


def video_of(sample: str) -> str:
    """The video of a sample's id, as MMSA and MMSDK write ids (`video$_$segment`, `video[3]`); empty of another id."""
    if ID_SEPARATOR in sample:
        return sample.rpartition(ID_SEPARATOR)[0]
    return without_number(sample) if sample.endswith("]") and "[" in sample else ""


def videos_of(ids: Sequence[str]) -> list[str]:
    """The video of each sample; an empty list where not every id names one, or all or no two name the same."""
    videos = [video_of(sample) for sample in ids]
    return videos if all(videos) and 1 < len(set(videos)) < len(videos) else []
