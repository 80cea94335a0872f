"""What kind of file something is by its first bytes, and what to do with a file of the wrong kind.

Every reader of a user's file calls `check_file_kind` before it parses, or `explain` after parsing failed. So the error
about a compressed, badly downloaded or wrong file says what the file is. Nothing is unpacked; the files of a zip are
listed by name.
"""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

HEAD_BYTES = 1024
"""Bytes that are looked at."""
_NAMED = 3
"""Files of an archive that a message names."""


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    name: str
    """With its article, as in "a gzip archive"."""
    advice: str
    """What to do with one."""


_UNPACK = "unpack it and give the file inside"
HDF5_NAME = "an HDF5 file (.h5, .hdf5, .csd or MATLAB 7.3)"
_HDF5 = Kind(
    HDF5_NAME,
    "give `dmd shard` the computational sequences (.csd) of a data set, and say with --csd which is which; read any "
    "other with h5py and save its arrays as an MMSA pickle or a Parquet table",
)
_MATLAB = Kind("a MATLAB file", "read it with scipy.io.loadmat and save its arrays as an MMSA pickle")
_MEDIA = "features are needed: `dmd extract` makes them of a folder of clips, and `dmd predict RUN CLIP` predicts one"
_LFS = Kind("a Git-LFS pointer", "the file itself is not here: run `git lfs pull` in its repository, or download it")
_WEB = Kind(
    "a web page (HTML)",
    "the download gave a page, such as a log-in or a virus scan warning, in the place of the file; download it again",
)
_PARQUET = Kind("a Parquet table", "give it to `dmd shard`, which makes shards of it")
_ARROW = Kind("an Arrow table", "name it .arrow and give it to `dmd shard`, which makes shards of it")
_TAR = Kind("a tar archive", "index WebDataset tars in their directory with `dmd index`; unpack any other")
_TORCH = Kind("a PyTorch file (.pt, .pth)", "load it with torch and save its arrays as a pickle of numpy arrays")
_TORCH_OLD = Kind("a PyTorch file (.pt, .pth) of before version 1.6", _TORCH.advice)
_NPY = Kind("a numpy array (.npy)", "save the arrays of all splits and fields as one MMSA pickle")
_NPZ = Kind("a numpy archive (.npz)", "load it with numpy and save its arrays as a pickle {split: {field: array}}")
_SAFETENSORS = Kind("a safetensors file", "load it and save its arrays as an MMSA pickle")
_JSON = Kind("a JSON file", "features go in an MMSA pickle or a Parquet table")
_MP3, _AAC = Kind("an MP3 sound file", _MEDIA), Kind("an AAC sound file", _MEDIA)
_OFFICE = "features go in an MMSA pickle or a Parquet table, whose columns hold lists"
UTF16_NAME = "a text in UTF-16"
_UTF16 = Kind(UTF16_NAME, _OFFICE)
_CSV = Kind("a text table (CSV or TSV)", f"{_OFFICE}; labels alone, as MMSA's label.csv has them, go to --labels")
_TEXT = Kind("a text file", "give a feature pickle, a directory of them or a Parquet table")
_ZEROS = Kind("a file that begins with zeros only", "its download or copy is not whole; fetch it again")
_EMPTY = Kind("an empty file", "its download or writing did not end; make it again")
_ZIP = Kind("a zip archive", _UNPACK)
_MP4 = Kind("an MP4 or QuickTime video", _MEDIA)
TORCH_KINDS = (_TORCH.name, _TORCH_OLD.name)
PICKLE = Kind("a pickle", "give it to `dmd shard`, which makes shards of it")

_STARTS: tuple[tuple[bytes, Kind], ...] = (
    (b"\x1f\x8b", Kind("gzip compressed", "unpack it with gunzip (a .tar.gz with tar xzf) and give the file inside")),
    (b"BZh", Kind("bzip2 compressed", "unpack it with bunzip2 and give the file inside")),
    (b"\xfd7zXZ\0", Kind("xz compressed", "unpack it with unxz and give the file inside")),
    (b"\x28\xb5\x2f\xfd", Kind("zstd compressed", "unpack it with unzstd and give the file inside")),
    (b"\x04\x22\x4d\x18", Kind("lz4 compressed", "unpack it with unlz4 and give the file inside")),
    (b"\x1f\x9d", Kind("compressed (.Z)", "unpack it with uncompress and give the file inside")),
    (b"\x5d\0\0", Kind("lzma compressed", "unpack it with unlzma and give the file inside")),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7-Zip archive", _UNPACK)),
    (b"Rar!\x1a\x07", Kind("a RAR archive", _UNPACK)),
    (b"\x89HDF\r\n\x1a\n", _HDF5),
    (b"MATLAB 7.3", _HDF5),
    (b"MATLAB 5.0", _MATLAB),
    (b"\x93NUMPY", _NPY),
    (b"PAR1", _PARQUET),
    (b"ARROW1", _ARROW),
    (b"FEA1", Kind("a Feather table of version 1", "write it again with version=2, or as Parquet")),
    (b"\xff\xff\xff\xff", Kind("an Arrow stream", "write it with `pyarrow.ipc.new_file`, or as Parquet")),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind("an Excel or other Office file", _OFFICE)),
    (b"SQLite format 3\0", Kind("an SQLite database", _OFFICE)),
    (b"\xff\xfe", _UTF16),
    (b"\xfe\xff", _UTF16),
    (b"version https://git-lfs", _LFS),
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", _TORCH_OLD),
    (b"\x1aE\xdf\xa3", Kind("a Matroska or WebM video", _MEDIA)),
    (b"fLaC", Kind("a FLAC sound file", _MEDIA)),
    (b"OggS", Kind("an Ogg file", _MEDIA)),
    (b"ID3", _MP3),
    (b"\xff\xfb", _MP3),
    (b"\xff\xf3", _MP3),
    (b"\xff\xf2", _MP3),
    (b"\xff\xf1", _AAC),
    (b"\xff\xf9", _AAC),
    (b"FORM", Kind("an AIFF sound file", _MEDIA)),
    (b"FLV\x01", Kind("a Flash video (FLV)", _MEDIA)),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind("a Windows Media file", _MEDIA)),
    (b"\0\0\1\xba", Kind("an MPEG video", _MEDIA)),
    (b"GIF8", Kind("a GIF picture", _MEDIA)),
    (b"\xff\xd8\xff", Kind("a JPEG picture", _MEDIA)),
    (b"\x89PNG\r\n\x1a\n", Kind("a PNG picture", _MEDIA)),
    (b"%PDF-", Kind("a PDF document", "give a feature file")),
    (b"PK\x03\x04", _ZIP),
    (b"PK\x05\x06", _ZIP),
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
)
"""What a file begins with, and its kind; the first that fits counts."""
_LATER: tuple[tuple[int, bytes, Kind], ...] = ((4, b"ftyp", _MP4), (257, b"ustar", _TAR))
"""Offset, the bytes there, and the kind of a file that has them."""
_RIFF = {
    b"WAVE": Kind("a WAV sound file", _MEDIA),
    b"AVI ": Kind("an AVI video", _MEDIA),
    b"WEBP": Kind("a WebP picture", _MEDIA),
}
"""Bytes 8 to 12 of a file that begins with RIFF or RF64, and its kind."""
_HTML = (b"<!doctype", b"<html", b"<head", b"<?xml")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def kind_of_bytes(head: bytes) -> Kind | None:
    """The kind of a file that begins with `head`; None where its first bytes say nothing."""
    if not head:
        return _EMPTY
    return _kind_by_magic(head) or _kind_by_text(head) or (None if head.strip(b"\0") else _ZEROS)


def _kind_by_magic(head: bytes) -> Kind | None:
    """The kind of a binary format, which has fixed bytes at a fixed place."""
    for magic, kind in _STARTS:
        if head.startswith(magic):
            return kind
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    for offset, magic, kind in _LATER:
        if head.startswith(magic, offset):
            return kind
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 32:  # the length of the JSON that follows
        return _SAFETENSORS
    return None


def _kind_by_text(head: bytes) -> Kind | None:
    """HTML or JSON, by what its text begins with."""
    start = head.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if start[:1] == b"<" and any(tag in start[:512].lower() for tag in _HTML):
        return _WEB
    return _JSON if start[:1] in (b"{", b"[") else None


def kind_of(path: str | Path) -> Kind | None:
    """The kind of a file; None where its first bytes say nothing, and for a pipe, whose bytes would be gone."""
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        kind = kind_of_bytes(file.read(HEAD_BYTES))
    return _kind_of_zip(path) if kind is _ZIP else kind


def check_file_kind(path: str | Path, wanted: str, *, allowed: tuple[str, ...] = ("a pickle",)) -> None:
    """Raise `ValueError` for what is no file, and for a file of a kind that is not wanted.

    Args:
        path: the user's file.
        wanted: what it should be, as in "a feature pickle".
        allowed: names of the kinds that are accepted, as are files whose first bytes say nothing.
    """
    if os.path.isdir(path):
        raise ValueError(f"{path} is a directory; give {wanted}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is empty or no file: it is a pipe or a device; write it to a file and give {wanted}")
    if not os.path.isfile(path):
        raise ValueError(f"{path} is empty or no file: there is nothing at this path; give {wanted}")
    kind = kind_of(path)
    if kind is _EMPTY:
        raise ValueError(f"{path} is empty or no file: it has 0 bytes; {_EMPTY.advice}")
    if kind is not None and kind.name not in allowed:
        raise ValueError(f"{path} is {kind.name}, not {wanted}: {kind.advice}")


def is_macos_metadata(name: str) -> bool:
    """Whether a file or an archive's member is what macOS leaves behind (`._x`, `.DS_Store`, `__MACOSX/x`)."""
    parts = name.split("/")
    return parts[-1] == ".DS_Store" or parts[-1].startswith("._") or "__MACOSX" in parts


def explain(head: bytes) -> str:
    """Words for an error about a file that cannot be read, such as ": it is a text file; ..."; "" without a clue."""
    kind = kind_of_bytes(head) or _text_kind(head)
    return "" if kind is None or kind is PICKLE else f"it is {kind.name}: {kind.advice}"


def _text_kind(head: bytes) -> Kind | None:
    """A text or a table of text. `kind_of_bytes` does not look for it: a pickle of protocol 0 is text, too."""
    try:
        text = head.removeprefix(_BYTE_ORDER_MARK).decode(errors="strict" if len(head) < HEAD_BYTES else "ignore")
    except UnicodeDecodeError:
        return None
    lines = text.splitlines()
    if not lines or not all(character.isprintable() or character in "\t\r\n" for character in text):
        return None
    return _CSV if any(lines[0].count(mark) for mark in ",;\t") else _TEXT


def _kind_of_zip(path: str | Path) -> Kind:
    """The kind of a zip: numpy, torch and Office write some; for any other the advice lists its files."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        return Kind("a zip archive that is not whole", "download it again")
    if names and all(name.endswith(".npy") for name in names):
        return _NPZ
    if any(name.endswith("data.pkl") for name in names):
        return _TORCH
    if "[Content_Types].xml" in names:
        return Kind("an Excel or other Office file", _OFFICE)
    shown = ", ".join(repr(name)[:80] for name in names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return Kind("a zip archive", f"{_UNPACK} ({shown or 'it holds none'})")
