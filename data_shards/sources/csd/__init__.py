"""Computational sequences (.csd) of the CMU Multimodal SDK as samples: one per segment that has a label.

`roles` finds which file is text, audio, vision, labels and words, `files` reads one, a video at a time. `segments` are
what has labels, `alignment` is the SDK's rule of which rows belong to a segment or a word, `content` applies it.
`survey` reads all once for lengths and checks, `source` makes samples. Needs h5py, which is imported when a file is
opened. API: `roles.find_roles`, `source.CsdSource`.
"""
