"""What may be wrong with the bytes of a shard, and how errors tell it."""

from data_shards.format.schema import MEMBERS

SUGGESTED_FIX = "restore the shard or rebuild with `dmd shard`; `dmd verify` lists all damage"


class Damage(Exception):
    """The bytes of a sample are not those that the index tells of. Who raises it need not know the sample's key."""

    def __init__(self, what: str) -> None:
        """`what` follows the name of the shard; `{key}` in it stands for the key of the sample."""
        super().__init__(what)
        self._what = what

    def explain(self, shard: str, key: str) -> ValueError:
        """The error for a user; `shard` is the shard's directory and name."""
        return ValueError(f"{shard} {self._what.format(key=key)}; {SUGGESTED_FIX}")


def truncated(offset: int) -> Damage:
    """The shard ends before the sample at `offset` does."""
    return Damage(f"is cut short: sample {{key}} at offset {offset} is missing")


def mismatch(member: int, offset: int) -> Damage:
    """The member, by its place in MEMBERS, does not match its size or crc32."""
    return Damage(f"is damaged: {MEMBERS[member]} of sample {{key}} at offset {offset}")


def not_found(offset: int) -> Damage:
    """A scan of the tar does not come to the sample that the index has at `offset`."""
    return Damage(f"lacks sample {{key}}, which was at offset {offset}: it is cut short, damaged or another one")
