"""Files of the wrong kind are named for what they are, with a suggested fix, by every reader of a user's file."""

import bz2
import collections
import gzip
import io
import lzma
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from data_shards.commands import index, shard
from data_shards.file_kinds import HEAD_BYTES, kind_of, kind_of_bytes
from data_shards.reading.reader import ShardReader
from data_shards.safe_pickle.load import loads
from data_shards.sources.detect import SourceOptions, open_source
from tests.support.small_data import COUNTS, mmsa, read_all, save

PICKLED = pickle.dumps(mmsa({"train": 4}), protocol=4)


def _office():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("[Content_Types].xml", "xl/workbook.xml"):
            archive.writestr(name, "<")
    return file.getvalue()


def _zip(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, raw in members.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), raw)
    return file.getvalue()


def _npz():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def _tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("x.pkl")
        info.size = len(PICKLED)
        tar.addfile(info, io.BytesIO(PICKLED))
    return file.getvalue()


KINDS = {
    "gzip": (gzip.compress(PICKLED), "gzip compressed.*gunzip"),
    "bzip2": (bz2.compress(PICKLED), "bzip2 compressed.*bunzip2"),
    "xz": (lzma.compress(PICKLED), "xz compressed.*unxz"),
    "zstd": (pa.compress(PICKLED, "zstd", asbytes=True), "zstd compressed.*unzstd"),
    "lzma": (lzma.compress(PICKLED, format=lzma.FORMAT_ALONE), "lzma compressed.*unlzma"),
    "xlsx": (_office(), "an Excel or other Office file.*Parquet"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "an Excel or other Office file.*Parquet"),
    "utf-16": ("id,label\n".encode("utf-16"), "a text in UTF-16.*Parquet"),
    "stream": (b"\xff\xff\xff\xff\x80\1\0\0" + bytes(99), "an Arrow stream.*new_file"),
    "feather 1": (b"FEA1" + bytes(99), "a Feather table of version 1.*version=2"),
    "bare mp3": (b"\xff\xfb\x90\0" + bytes(99), "an MP3 sound file.*dmd extract"),
    "aiff": (b"FORM\0\0\0\0AIFF", "an AIFF sound file.*dmd extract"),
    "flv": (b"FLV\1", "a Flash video.*dmd extract"),
    "zip": (_zip(unaligned_pkl=PICKLED), r"a zip archive.*unpack it and give the file inside \('unaligned\.pkl'\)"),
    "half zip": (_zip(unaligned_pkl=PICKLED)[:-9], "zip archive that is not whole.*download it again"),
    "pt": (_zip(archive__data_pkl=PICKLED, archive__version=b"3"), r"a PyTorch file.*load it with torch"),
    "old pt": (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + PICKLED, "a PyTorch file .* of before version 1.6"),
    "npz": (_npz(), r"a numpy archive \(\.npz\)"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(120), r"a numpy array \(\.npy\)"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(900), r"an HDF5 file \(.*\.csd.*h5py"),
    "matlab": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "a MATLAB file"),
    "html": (b"\n <!DOCTYPE html><html><title>Virus scan warning</title></html>", "a web page.*download it again"),
    "html in capitals": (b"\xef\xbb\xbf<HTML><BODY>Sign in</BODY></HTML>", "a web page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git-LFS pointer.*git lfs pull"),
    "csv": (b"id,label\nx,2\n", r"a text table \(CSV or TSV\).*Parquet"),
    "csv with a mark": ("\ufeffid;größe\nx;2\n".encode(), "a text table"),
    "tsv": (b"id\tlabel\n" * 900, "a text table"),
    "json": (b' {"train": []}', "a JSON file"),
    "json list": (b'["train", 1]', "a JSON file"),
    "text": (b"hello world\n", "a text file"),
    "wav": (b"RIFF\x24\x08\0\0WAVEfmt ", "a WAV sound file.*dmd extract"),
    "avi": (b"RIFF\x24\x08\0\0AVI LIST", "an AVI video"),
    "mp4": (b"\0\0\0\x20ftypisom\0\0\2\0", "an MP4 or QuickTime video.*dmd extract"),
    "matroska": (b"\x1aE\xdf\xa3\xa3B\x86\x81", "a Matroska or WebM video"),
    "mp3": (b"ID3\x03\0\0", "an MP3 sound file"),
    "tar": (_tar(), "a tar archive.*dmd index"),
    "safetensors": ((24).to_bytes(8, "little") + b'{"__metadata__":{"a":1}}', "a safetensors file"),
    "zeros": (bytes(5000), "begins with zeros only.*not whole"),
    "empty": (b"", "is empty or no file: it has 0 bytes"),
    "half": (PICKLED[: len(PICKLED) // 2], "is damaged: it is cut short.*download or write it again"),
    "random": (b"\xf1\xf2\xf3\xf4" * 9, "is no pickle, and of no kind that is known here"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_named_by_each_reader_of_pickles(tmp_path, kind):
    raw, words = KINDS[kind]
    path, good = tmp_path / "x.pkl", save(mmsa(), tmp_path / "good.pkl")
    path.write_bytes(raw)
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "train.pkl").write_bytes(raw)
    out = str(tmp_path / "out")
    for named, argv in (
        (path, [str(path), out]),
        (path, [str(path), out, "--format", "misa"]),
        (path, [str(good), out, "--feature-audio", str(path)]),
        (tmp_path / "directory" / "train.pkl", [str(tmp_path / "directory"), out]),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            shard(argv)
        assert str(caught.value).startswith(f"{named} ")
        assert "\n" not in str(caught.value)
        assert "opcode" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
@pytest.mark.parametrize("kind", ["gzip", "zip", "hdf5", "html", "lfs", "json", "tar", "empty"])
def test_tables_too(tmp_path, kind, name):
    raw, words = KINDS[kind]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=words):
        shard([str(tmp_path / name), str(tmp_path / "out")])


@pytest.mark.parametrize("kind", ["gzip", "zip", "hdf5", "html", "lfs", "empty"])
def test_tars_too(tmp_path, kind):
    raw, words = KINDS[kind]
    (tmp_path / "train.tar").write_bytes(raw)
    with pytest.raises(ValueError, match=words) as caught:
        index([str(tmp_path)])
    assert "train.tar" in str(caught.value)


def test_a_table_needs_no_suffix(tmp_path):
    row = {"split": "train", "text": [[1.0]], "audio": [[1.0]], "vision": [[1.0]]}
    table = pa.Table.from_pylist([{**row, "id": f"c{i}", "label": i / 2 - 1} for i in range(4)])
    pq.write_table(table, tmp_path / "one")
    feather.write_feather(table, tmp_path / "two.data")
    for name in ("one", "two.data"):
        assert open_source(tmp_path / name, SourceOptions()).counts() == {"train": 4}


def test_no_pickle_is_taken_for_another_kind():
    values = [mmsa({"train": 2}), [], {}, (), "RIFF", b"BZh", 5, [["id", "label"]], {"a": np.zeros(3)}]
    for value in values:
        for protocol in range(6):
            kind = kind_of_bytes(pickle.dumps(value, protocol=protocol)[:HEAD_BYTES])
            assert kind is None or kind.name == "a pickle"
            loads(pickle.dumps(value, protocol=protocol))


def test_other_places_that_are_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(mmsa(), tmp_path / "good.pkl")
    (tmp_path / "d").mkdir()
    save(mmsa(), tmp_path / "d" / "unaligned_50.pkl")
    (tmp_path / "d" / "sub").mkdir()
    (tmp_path / "empty").mkdir()
    for given, words in (
        ("gone.pkl", "gone.pkl: it is not there"),
        ("https://x.org/a.pkl", r"https://x\.org/a\.pkl: features are read from files: download it"),
        ("empty", "empty is no table: give a .parquet or .arrow file"),
    ):
        with pytest.raises(ValueError, match=words):
            shard([given, "out"])
    with pytest.raises(ValueError, match="d/sub is a directory"):
        shard(["good.pkl", "out", "--feature-audio", "d/sub"])
    assert shard(["good.pkl", "out"]) == 0
    with pytest.raises(ValueError, match="out holds shards already"):
        shard(["out", "again"])


def test_several_pickles_in_one_file(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(mmsa()["train"]) + pickle.dumps(mmsa()["valid"]))
    with pytest.raises(ValueError, match=r"goes on for \d+ bytes after its first pickle"):
        shard([str(path), str(tmp_path / "out")])
    path.write_bytes(pickle.dumps(mmsa()) + b"\r\n\0\0")
    assert shard([str(path), str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("protocol", range(6))
def test_dicts_of_collections_are_dicts(tmp_path, protocol):
    data = mmsa()
    made = collections.defaultdict(dict, {k: collections.OrderedDict(fields) for k, fields in data.items()})
    path = save(made, tmp_path / "x.pkl", protocol=protocol)
    assert shard([str(path), str(tmp_path / "out"), "--processes", "1"]) == 0
    assert np.array_equal(read_all(tmp_path / "out")["audio"], data["train"]["audio"])
    for value in (
        collections.OrderedDict([("b", 1), ("a", [2])]),
        collections.defaultdict(list, a=[1]),
        collections.defaultdict(None, a=1),
        collections.OrderedDict(),
    ):
        found = loads(pickle.dumps(value, protocol=protocol))
        assert type(found) is dict
        assert list(found.items()) == list(value.items())


def test_the_factory_of_a_defaultdict_is_never_called():
    with pytest.raises(ValueError, match="calls a builtin type"):
        loads(b"\x80\x02c__builtin__\nlist\n]\x85R.")
    with pytest.raises(ValueError, match="a function instead of data"):
        loads(pickle.dumps({"a": dict}))
    with pytest.raises(ValueError, match=r"posix\.system|nt\.system"):
        loads(b"\x80\x02ccollections\ndefaultdict\ncposix\nsystem\n\x85R.")


def test_keys_of_bytes_are_names(tmp_path):
    data = {k.encode(): {name.encode(): v for name, v in fields.items()} for k, fields in mmsa().items()}
    path = save(data, tmp_path / "x.pkl")
    assert shard([str(path), str(tmp_path / "out"), "--processes", "1"]) == 0
    with ShardReader(tmp_path / "out") as reader:
        assert reader.index.info.counts == COUNTS
        assert reader.index.info.ignored == {"annotations": 35}


def test_shards_that_moved_are_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r"the place that it was moved to \(for the shards of a run, with --data\)"):
        ShardReader(tmp_path / "gone")


def test_a_member_of_the_wrong_kind_is_named(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name, raw in (("a.t.npy", KINDS["lfs"][0]), ("a.json", b'{"y": 1}')):
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    with pytest.raises(ValueError, match=r"train\.tar: sample a: t\.npy is no array .*: it is a Git-LFS pointer"):
        index([str(tmp_path), "--map", "text=t.npy,audio=t.npy,vision=t.npy,label=json:y"])
    assert kind_of(tmp_path / "train.tar").name == "a tar archive"


@pytest.mark.parametrize("kind", ["hdf5", "npz", "wav", "tar"])
def test_a_directory_of_another_kind(tmp_path, kind):
    raw, words = KINDS[kind]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"in is no table: .*; .*in/x is {words}"):
        shard([str(tmp_path / "in"), str(tmp_path / "out")])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is empty or no file: it is a pipe or a device; write it to a file"):
        shard([str(tmp_path / "pipe"), str(tmp_path / "out")])
