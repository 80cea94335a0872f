"""What a rank is told, as DeepSpeed's launcher tells it, for those who start ranks without the launcher."""

from launch.network.interfaces import LOOPBACK


def rank_environment(
    *,
    rank: int,
    ranks: int,
    port: int,
    local_rank: int | None = None,
    local_ranks: int | None = None,
    hosts: int = 1,
    address: str = LOOPBACK,
) -> dict[str, str]:
    """The environment of one rank; by default all ranks are on one host.

    Args:
        rank: its number, from 0.
        ranks: how many there are.
        port: TCP port of rank 0's store.
        local_rank: its number among those of its host, which chooses its GPU; None: `rank`.
        local_ranks: ranks of its host; None: `ranks`.
        hosts: how many hosts the ranks are on.
        address: of rank 0's host.
    """
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank if local_rank is None else local_rank),
        "LOCAL_SIZE": str(ranks if local_ranks is None else local_ranks),
        "CROSS_SIZE": str(hosts),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
