"""What lies in a folder of runs: `dmd runs`.

`find` finds run directories. `summary` reads one, without torch and without its weights: `state` says whether it is
running or how it ended, `log_end` reads the end of its log, `tags` the names that a user gave it. `columns` says what
can be shown, sorted and filtered by, and which config keys tell runs apart; `listing` and `compare` make tables.

    folders -> find -> summary -> columns -> sorted, filtered -> listing, compare -> text, CSV, JSON

A run stands for what `dmd evaluate` finds: the best validation up to its newest whole checkpoint. The test split is
never read here.
"""
