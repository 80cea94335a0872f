"""Walk a pickle's opcodes without executing them, so that false sizes are found before they take memory.

An unpickler trusts what it reads: for a length of 2^60 or a memo slot of 2^32 it allocates first and fails later.
"""

import mmap
import pickletools

_OPCODES = {ord(op.code): op for op in pickletools.opcodes}
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_TWO_LINES = {"GLOBAL", "INST"}
_MEMO_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}


def scan(data: bytes | mmap.mmap, name: str) -> int:
    """How many bytes follow the pickle.

    Raises:
        ValueError: an opcode that is not known, a length that does not fit the data, or a memo slot out of turn.
    """
    position, size, seen = 0, len(data), 0
    while position < size:
        opcode = _OPCODES.get(data[position])
        if opcode is None:
            if position:
                raise ValueError(f"{name} is damaged: byte {data[position]:#04x} at {position} is no opcode")
            raise ValueError(f"{name} is no pickle, and of no kind that is known here; give a feature pickle")
        start, position = position + 1, _argument_end(data, position + 1, opcode)
        if position > size or (opcode.name == "FRAME" and position + _little_endian(data[start:position]) > size):
            raise ValueError(
                f"{name} is damaged: it is cut short, as {opcode.name} at {start - 1} runs past the end of the file; "
                "download or write it again"
            )
        seen += 1
        if opcode.name in _MEMO_PUTS and _memo_slot(data[start:position], opcode.name, name) > seen:
            raise ValueError(f"{name} is damaged: the memo slot at {start - 1} is out of turn")
        if opcode.name == "STOP":
            return size - position
    raise ValueError(f"{name} is damaged: the pickle has no end; download or write it again")


def _argument_end(data: bytes | mmap.mmap, start: int, opcode: pickletools.OpcodeInfo) -> int:
    """Where the argument that starts at `start` ends; past the end of the data when it does not fit."""
    if opcode.arg is None:
        return start
    if opcode.arg.n >= 0:
        return start + opcode.arg.n
    if opcode.arg.n == pickletools.UP_TO_NEWLINE:
        for _ in range(2 if opcode.name in _TWO_LINES else 1):
            start = data.find(b"\n", start) + 1
            if start == 0:
                return len(data) + 1
        return start
    width = _LENGTH_BYTES[opcode.arg.n]
    return start + width + _little_endian(data[start : start + width])


def _little_endian(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def _memo_slot(raw: bytes, opcode: str, name: str) -> int:
    if opcode != "PUT":
        return _little_endian(raw)
    try:
        return int(raw)
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {raw[:20]!r} is no memo slot") from error
