"""Watches a rank and says how it ended.

`supervise` forks: the child trains, the parent, which loads no torch, watches it. They talk over `channels`; `watchdog`
dumps the stacks of a rank that hangs. `failures` turns an error into an `ending`, `lost` tells a rank that lost the
others from one that failed by itself, `peers` lets the other ranks know why one has left. `ending.cause` chooses, among
the endings of all ranks, the one that led to the rest. API: `supervise.supervise`, `ending.Ending`.
"""
