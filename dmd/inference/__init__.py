"""Predictions for data of the user's, and trained models as files.

`inputs` reads shards, a feature pickle, a table (`tables`) or clips (`clips`, `transcript_text`) as batches, `outputs`
writes a row per sample as Parquet or CSV. `export` writes and reads a directory with weights, config, a README
(`readme`, of what `training_facts` finds in the run) and a `torch.export` program; `hub` uploads and fetches one. The
model between them is `dmd.system.trained_model.TrainedModel`, or an `ensemble` of several; `model_files` reads either.
`predict_clip` is for Python.

    shards, features or clips -> inputs -> TrainedModel -> outputs -> table
"""
