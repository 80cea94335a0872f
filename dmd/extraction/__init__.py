"""What the extraction of features from clips needs of PyTorch: hidden states of what is said.

API: `text_states.load_text_states`, whose result `data_shards.extraction.extract.extract_clip` takes.
"""
