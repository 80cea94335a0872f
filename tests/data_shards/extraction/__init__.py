"""Tests of features from clips."""
