"""Networks of other models, on the same footing as DMD: one file each, a `Network` of `dmd.model.network`."""
