"""From shards to ghost batches on a device."""
