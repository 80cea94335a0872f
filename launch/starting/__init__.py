"""Starts the ranks, on this machine or on several hosts, and waits for them.

`runner` makes the command of DeepSpeed's launcher for a layout (`rank_layout`: which ranks run on which of the `hosts`
of a hostfile, and who starts them) and the environment that ranks need (`environment`; secrets go through
`private_variables`). `launcher` runs it: it forwards signals to every rank (`rank_processes`), collects the endings of
all ranks (`ending_collectors`), and returns the one that is the cause. `restarts` runs it again after what a restart
mends. API: `rank_layout.RankLayout`, `restarts.run_with_restarts`.
"""
