"""Starts the ranks of a training with DeepSpeed, supervises them, and reports how they ended.

`dmd train` (`commands.train_by_launcher`, unless a Ray cluster is to start the ranks) checks the request
(`trainer.preflight`) and starts DeepSpeed's launcher (`starting`). That runs `train.py` once per rank. Each rank is two
processes: its supervisor (`supervision`), and the one that trains (`trainer`), which connects to the others over
`network`. A supervisor reports the end of its rank to the command, whose exit code (`dmd.exit_codes`) says the cause.
`doctor` checks a host before a long run.

API: `deepspeed launch/train.py`, `trainer.in_process.train_in_process`, which `dmd.train` calls, and
`trainer.build.make_training` for callers with a process group of their own, such as `cluster`. Modules are imported by
their own names: a supervisor and `dmd --help` load no torch.
"""
