"""The floor of DeepSpeed: starts the ranks of a training, watches them, and says how they ended.

`dmd train` (`commands`) checks the request (`trainer.preflight`) and starts DeepSpeed's launcher (`starting`). That
runs `train.py` once per rank. Each rank is two processes: its supervisor (`supervision`), and the one that trains
(`trainer`), which meets the others over `network`. How a rank ended goes back from its supervisor to the command, whose
exit code (`dmd.exit_codes`) tells the cause. `doctor` looks at a host before a long run.

API: `deepspeed launch/train.py`, and `trainer.build.make_training` for whoever brings a process group of its own, as
`cluster` does. Modules are imported by their own names: a supervisor and `dmd --help` load no torch.
"""
