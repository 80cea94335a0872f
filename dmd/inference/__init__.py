"""Predictions for data of the user's, and trained models as files.

`inputs` reads shards or a feature pickle as batches, `outputs` writes a row per sample as Parquet or CSV, and `export`
writes and reads a directory with weights, config and a `torch.export` program. The model between them is
`dmd.system.trained_model.TrainedModel`.

    shards or pickle -> inputs -> TrainedModel -> outputs -> table
"""
