"""The networks of the models beside DMD, one file each; `dmd.system.models` lists them."""
