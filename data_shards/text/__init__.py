"""Text of transcripts: what stands in `raw_text` becomes token ids of an encoder, or vectors of words.

`tokenizer.load_tokenizer` finds the tokenizer of a model; its ids and its digest are the same on every host.
"""
