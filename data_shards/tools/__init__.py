"""What `dmd verify` and `dmd inspect` do with a set of shards.

`verify` checks every byte against the index and names what is damaged; `summary` gives counts, shapes and distributions
as data, as text, or as a picture.
"""
