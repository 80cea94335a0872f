"""Errors that every rank raises alike, so that all of them end in the same way."""


class OnEveryRank(ValueError):
    """What every rank raises alike: the message says which of them it is about."""


class Diverged(OnEveryRank):
    """The training has diverged."""


class TakenOver(OnEveryRank):
    """Another process has taken the run directory over."""


class StorageFailed(OSError):
    """The run directory could not be written where that ends the training; raised on every rank, and says of which."""
