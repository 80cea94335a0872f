"""The Ray floor: trials, searches and jobs over a cluster."""
