"""Indexes externally created tars, in place: they then are a set of shards.

`index_tars.index_tars` finds the tars and their splits, lets processes read each one from end to end (`scan_tar`), and
writes the index as `data_shards.writing` does. Members that can hold code are rejected.
"""
