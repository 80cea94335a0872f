"""The published implementation (mdswyz/DMD): its parameter names, and its checkpoints as runs of ours.

`parameter_names` is the table of its names and ours, for any number of levels; a tensor may be a part of one of ours.
It turns a state dict into the other form, both ways, and says what had no counterpart. `import_checkpoint` reads a
.pth file without running code from it, checks its shapes against a config, and writes a run directory with one
checkpoint, which `dmd evaluate`, `predict` and `export` read.

    .pth -> read_published -> from_published -> RUN/checkpoints/step_00000000

API: `import_checkpoint.import_run` (`dmd import`), `parameter_names.from_published` and `to_published`.
"""
