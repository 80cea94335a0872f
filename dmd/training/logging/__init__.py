"""The log of a run: TensorBoard, the same numbers as JSON lines, run.json and lines on the terminal.

`logbook` is what the loop calls. `recorder` writes to disk, through `record_files`, which cuts both logs at a step when
a training resumes. `tensorboard_figures` draws, `provenance` says what a run was made with and `costs` what a session
costs, `progress` shows an epoch.
"""
