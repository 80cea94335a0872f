"""Reads untrusted pickles without running code that they hold.

`opcode_scan` walks the opcodes first and finds false sizes. `load` then reads the pickle with an unpickler that allows
builtin containers, numpy scalars and numpy arrays only; `numpy_stand_ins` stand for the latter until all is read. API:
`load.loads` of bytes, `load.Pickle` of a file.
"""
