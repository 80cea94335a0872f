"""Feature files as WebDataset shards with an index, a reader and a global sample order; no torch."""
