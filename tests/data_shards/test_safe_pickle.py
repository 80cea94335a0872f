"""Untrusted pickles: data is read, anything else is rejected by name."""

import collections
import os
import pickle
import pickletools
import subprocess
import sys

import numpy as np
import pytest

from data_shards.safe_pickle.load import Pickle, loads

VALUES = {
    "float": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "big endian": np.arange(5, dtype=">i4"),
    "strings": np.array(["a", "bcd", "ü"]),
    "bytes": np.array([b"a", b"bcd"]),
    "objects": np.array(["vid$_$1", 3, None, ["x"]], dtype=object),
    "scalar": np.float64(1.5),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), dtype=np.int64),
    "containers": {"a": [1, 2.5, True, None, "text", b"raw"], "b": (1, {2, 3}, frozenset([4])), "c": 10**40},
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", VALUES)
def test_data_comes_back_equal(name, protocol):
    value = VALUES[name]
    found = loads(pickle.dumps(value, protocol=protocol))
    if isinstance(value, np.ndarray):
        assert np.asarray(found).dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
        assert np.array_equal(found, value)
    else:
        assert found == value


def test_numpy_1_module_paths_and_python_2_pickles():
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    old = pickle.dumps({"x": array}, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in old
    assert np.array_equal(loads(old)["x"], array)
    state = b"(I1\n(I2\nI3\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS"
    raw = repr(array.tobytes().decode("latin1")).encode("unicode_escape").replace(b"\\\\", b"\\")
    python2 = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR" + state + raw + b"\ntb."
    assert np.array_equal(loads(python2), array)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "thing, name",
    [
        (Evil(os.system, "touch PWNED"), "posix.system"),
        (Evil(eval, "open('PWNED', 'w')"), "builtins.eval"),
        (Evil(getattr, "", "join"), "builtins.getattr"),
        (Evil(np.load, "x"), "numpy.load"),
        (collections.Counter(a=1), "collections.Counter"),
        (np.random.RandomState(0), "numpy.random"),
        (np.ma.array([1]), "numpy.ma"),
    ],
)
def test_a_forbidden_global_is_named_and_not_run(thing, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=name):
        loads(pickle.dumps({"train": thing}))
    assert not list(tmp_path.iterdir())


def test_arrays_cannot_smuggle_pointers():
    """An object array given raw bytes, or a dtype whose pickled flags deny that it holds objects."""
    good = pickle.dumps(np.array([None, None], dtype=object), protocol=2)
    forged = good.replace(b"]q\x11(NNe", b"U\x10" + b"A" * 16)
    assert forged != good
    with pytest.raises(ValueError, match="without its 2 values"):
        loads(forged)
    with pytest.raises(ValueError, match="only plain numbers"):
        loads(pickle.dumps(np.zeros(2, dtype=[("a", "f4"), ("b", "O")])))


def test_a_pickle_cannot_change_our_functions():
    reconstruct = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n"
    with pytest.raises(ValueError, match="change a function"):
        loads(reconstruct + b"}U\x01aK\x01sb.")
    with pytest.raises(ValueError, match="change a function"):
        loads(reconstruct + b"N}U\x0c__defaults__Ns\x86b.")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.",  # 2^60 bytes announced
        b"\x80\x04Nr\xff\xff\xff\xff.",  # memo slot 2^32
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x00N.",  # frame of 2^56
        pickle.dumps(list(range(100)))[:-20],
        b"\x80\x04K\x01R.",
        b"\x80\x04cbuiltins\nset\nK\x05\x85R.",
    ],
)
def test_damaged_pickles_are_one_line_errors(data):
    with pytest.raises(ValueError, match=r"^features\.pkl ") as caught:
        loads(data, name="features.pkl")
    assert "\n" not in str(caught.value)


def test_a_file_is_read_like_bytes(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"a": np.arange(3)}))
    assert Pickle(path).value["a"].tolist() == [0, 1, 2]
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty or no file"):
        Pickle(path)
    with pytest.raises(ValueError, match="empty or no file"):
        Pickle(tmp_path / "absent.pkl")


def test_false_sizes_take_no_memory():
    """In a process with little memory, so that an allocation of what the pickle claims would show."""
    lies = b"\x80\x04]" + b"r\xfe\xff\xff\xff" + b"."
    assert [op.name for op, _, _ in pickletools.genops(lies)][2] == "LONG_BINPUT"
    code = (
        "import sys; from data_shards.safe_pickle.load import loads\n"
        "try: loads(bytes.fromhex(sys.argv[1]))\n"
        "except ValueError: print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) < 200_000)"
    )
    done = subprocess.run([sys.executable, "-c", code, lies.hex()], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
