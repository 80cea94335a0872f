"""Starts the ranks, on this machine or on several hosts, and waits for them.

`runner` makes the command of DeepSpeed's launcher for the hosts of a hostfile (`hosts`) and the environment that ranks
need (`environment`; secrets go through `private`). `launcher` runs it: signals reach every rank (`reach`), the endings
of all ranks are collected (`collect`), and the one that is the cause comes back. API: `runner.run_launcher`.
"""
