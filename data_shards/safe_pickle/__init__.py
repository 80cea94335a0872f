"""Reads pickles that nobody vouches for, without running what they hold.

`opcode_scan` walks the opcodes first and finds sizes that lie. `load` then reads the pickle with an unpickler that
knows builtin containers, numpy's scalars and arrays alone; `numpy_stand_ins` take the places of the latter until the
end. API: `load.loads` of bytes, `load.Pickle` of a file.
"""
