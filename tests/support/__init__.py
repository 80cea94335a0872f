"""What tests share: small data and runs, forked ranks, hosts, clusters, servers and disks. No test imports another."""
