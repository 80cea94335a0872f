"""`dmd predict` and `dmd evaluate` on a Ray cluster, through Ray Data.

`request` is what they are asked for of the cluster. `pool` sends tasks to actors that hold the model, and gives back
their answers; `predict` and `evaluate` say what a task is: a part of a directory of predictions
(`dmd.inference.part_files`), or some batches of an evaluation. `model` is read once and sent to the actors.

    request -> pool of actors -> parts on the shared storage, or predictions -> manifest, or metrics
"""
