"""Arrays from .npz files of anybody: sizes are known before anything is unpacked."""

import contextlib
import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy

from vggfeat.formats.npz import LONGEST_TEXT, UNREADABLE, Wanted, read_arrays

MB = 1 << 20


def packed(save=np.savez_compressed, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file


def forged(header, data=b"", *, method=zipfile.ZIP_DEFLATED):
    """An entry x whose header says what it likes."""
    file, member = io.BytesIO(), io.BytesIO()
    npy.write_array_header_1_0(member, {"fortran_order": False, **header})
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("x.npy", member.getvalue() + data)
    return file


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_is_read(save):
    arrays = {
        "f": np.arange(6.0).reshape(2, 3), "t": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "i": np.array([1, -1], np.int8), "u": np.array(["a", "猫\udcff"]), "none": np.zeros((0, 3)),
    }  # fmt: skip
    wanted = {
        "f": Wanted("f", (2, 3)), "t": Wanted("f", (None, 3)), "i": Wanted("i", (2,)), "u": Wanted("U", (None,)),
        "none": Wanted("f", (0, 3)), "not there": Wanted("f", (1,)),
    }  # fmt: skip
    found = read_arrays(packed(save, **arrays, other=np.zeros(9)), wanted, MB)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(("file", "said"), [
    (packed(x=np.zeros((200, MB // 8))), "expected arrays of at most 1048576 bytes, found 209715"),
    (packed(x=np.zeros((3, 2))), r"x: expected f of shape \(2, any\), found <f8 of \(3, 2\)"),
    (packed(x=np.zeros(2)), r"x: expected f of shape \(2, any\), found <f8 of \(2,\)"),
    (packed(x=np.zeros((2, 2), int)), r"x: expected f of shape \(2, any\), found <i8"),
    (packed(np.savez, x=np.array([[None, 1]] * 2, dtype=object)), r"x: expected f of shape"),
    (forged({"descr": "<f8", "shape": (2, 1 << 40)}), "x: expected 17592186044416 bytes for its shape, found 0"),
    (forged({"descr": "<f8", "shape": (2, -1)}), r"found <f8 of \(2, -1\)"),
    (forged({"descr": "<f8", "shape": (2, 1)}, bytes(17)), "x: expected 16 bytes for its shape, found 17"),
    (forged({"descr": "<f8", "shape": (2, 1)}, bytes(16), method=zipfile.ZIP_LZMA), "compressed otherwise"),
    (forged({"descr": "<f8", "shape": (2, 1)}, bytes(16), method=zipfile.ZIP_BZIP2), "compressed otherwise"),
])  # fmt: skip
def test_sizes_and_shapes_that_are_not_expected_are_refused_unread(file, said):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=said):
            read_arrays(file, {"x": Wanted("f", (2, None))}, MB)
        assert tracemalloc.get_traced_memory()[1] < MB
    finally:
        tracemalloc.stop()


def test_texts_have_a_length_that_a_name_can_have():
    read_arrays(packed(x=np.array(["x" * LONGEST_TEXT])), {"x": Wanted("U", (1,))}, MB)
    with pytest.raises(ValueError, match="expected texts of at most 4096 characters, found 4097"):
        read_arrays(packed(x=np.array(["x" * (LONGEST_TEXT + 1)])), {"x": Wanted("U", (1,))}, MB)


@pytest.mark.parametrize("place", range(0, 700, 7))
def test_a_damaged_file_is_an_error_that_is_known(place):
    content = bytearray(packed(x=np.arange(60.0), y=np.array(["a"] * 60)).getvalue())
    for damaged in (
        content[:place],
        content[:place] + bytes([content[place % len(content)] ^ 0xFF]) + content[place + 1 :],
    ):
        with contextlib.suppress(*UNREADABLE):
            read_arrays(io.BytesIO(damaged), {"x": Wanted("f", (60,)), "y": Wanted("U", (60,))}, MB)
