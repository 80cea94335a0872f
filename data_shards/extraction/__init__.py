"""Features from clips: a video or a recording and its transcript become arrays that `dmd shard` takes.

A clip's way: `media` decodes its sound and its frames by presentation time (PyAV), `audio` and `vision` compute
features per frame (openSMILE or librosa; MediaPipe's face landmarker), `transcript_files` reads what is said and when,
`alignment` brings frames to words or to an even rate, `extract` puts them together. `settings` says how, travels with
the shards to run, checkpoint and export, and makes the same bytes of the same clip again.

API: `extract.extract_clip`, `clip.Clip`, `clip.ExtractedClip`, `clip.ClipError`, `settings.ExtractionSettings`,
`preparation.prepare`, `transcript.Transcript`, `transcript_files.read_transcript`. No torch: hidden states of text come
from a callable (`dmd.extraction.text_states`). The libraries are those of the extra `extract`, loaded where they are
used.
"""
