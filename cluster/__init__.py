"""The Ray floor: trials over a cluster, each a DeepSpeed training; experiments over seeds; job submission."""
