"""The DeepSpeed floor: the script that the launcher runs, its engine, ranks and signals."""
