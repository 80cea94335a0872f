"""Supervises a rank and reports how it ended.

`supervise` forks: the child trains, the parent, which loads no torch, watches it. They communicate over `channels`;
`watchdog` dumps the stacks of a rank that hangs. `failures` turns an error into an `ending`. `lost` distinguishes a
rank that lost the others from one that failed by itself, `peers` publishes to the other ranks why one leaves.
`ending.cause` chooses, among the endings of all ranks, the one that caused the rest. API: `supervise.supervise`,
`ending.Ending`.
"""
