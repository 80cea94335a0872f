"""Measurements; each script says what it compares and writes a CSV. They time nothing in the tests."""
