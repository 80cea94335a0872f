"""Jobs on a Ray cluster that this machine reaches by its dashboard alone.

`submit` checks the command here, by its row of `job_commands`, uploads the packages and the files that it names, and
follows the job; `entrypoint` is what the job runs there.
"""
