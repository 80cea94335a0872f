"""How the ranks of a training reach each other.

`rank_environment` is what a rank is told, `interfaces` chooses the network interface, `ports` the TCP port,
`rendezvous` opens the store in which ranks find each other: on the loopback for one host, on rank 0's address for
several.
"""
