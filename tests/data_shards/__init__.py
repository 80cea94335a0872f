"""Tests of `data_shards`; they import no torch."""
