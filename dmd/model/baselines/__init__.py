"""The other models, each a network in a file of its own: what DMD is compared with on the same footing.

A network derives from `dmd.model.network.Network`: it says what its heads are, begins its pass with `begin`, and gives
a `NetworkOutput`. `dmd.system.models` has a row for each; docs/models.md says how to add one. They need torch alone.
"""
