"""How a sample lies in our own tars."""

from tarfile import BLOCKSIZE

import numpy as np

from data_shards.format import npy
from data_shards.format.schema import MEMBERS, MODALITIES
from data_shards.reading.index import Records, ShardIndex

_JSON = MEMBERS.index("json")


class PackedLayout:
    """Sizes and distances of members: the same for all samples of a set, as all have the same shapes."""

    def __init__(self, index: ShardIndex) -> None:
        """The layout that an index tells of. Raises ValueError where no shard can hold such a sample."""
        info = index.info
        self.headers = [npy.header(info.shape(m), info.stored_dtype(m)) for m in MODALITIES]
        self.sizes = [int(np.prod(info.shape(m))) * info.stored_dtype(m).itemsize for m in MODALITIES]
        """Bytes of each array."""
        members = [len(header) + size for header, size in zip(self.headers, self.sizes, strict=True)]
        distances = [size + -size % BLOCKSIZE + BLOCKSIZE for size in members]
        gaps = [0, *(distance - size for distance, size in zip(distances[:-1], members[:-1], strict=True))]
        self.skipped = [gap + len(header) for gap, header in zip(gaps, self.headers, strict=True)]
        """Bytes before each array that are no data: padding and tar header, then its own header."""
        self.total = sum(self.skipped) + sum(self.sizes)
        if info.layout == "packed" and self.total > max(shard.bytes for shard in info.shards):
            raise ValueError(f"{index.root}: no shard is as large as one sample; rebuild with `dmd shard`")
        self._members = np.array(members)
        """Bytes of each member."""
        self._distances = np.array(distances[:-1])
        """Bytes from the start of each member to that of the next one."""

    def check(self, records: Records, place: str) -> None:
        """Raise ValueError where samples do not lie so; `place` is what it calls the set."""
        offsets, sizes = records["offset"][:, :_JSON], records["size"][:, :_JSON]
        if (sizes != self._members).any() or (offsets[:, 1:] - offsets[:, :-1] != self._distances).any():
            raise ValueError(f"{place}: samples do not have the shape that the index names; rebuild with `dmd shard`")
