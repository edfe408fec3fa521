"""MatConvNet's .mat files, saved by SciPy, next to a forward pass in SciPy; and files made to do harm."""

import struct
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat

from caffe_files import layers_of
from mat_files import MEAN, cell, forward, save, simplenn
from other_nets import difference, image, our_maps
from reading import load_here
from vggfeat.errors import WeightsError
from vggfeat.formats import mat5
from vggfeat.formats.mat5 import MOST_DEPTH, MOST_INFLATED
from vggfeat.weights import IMAGENET_MEAN


def narrow(config="A", **settings):
    return layers_of(config, **({"width": 2, "fc": 128, "classes": 10, "dense": True} | settings))


def load(tmp_path, variables, **how):
    save(tmp_path / "net.mat", variables, **how)
    return load_here(tmp_path / "net.mat", "matconvnet")


def scipy_maps(layers, pixels, **how):
    """All the maps as (1, C, h, w)."""
    maps = forward(layers, pixels.permute(1, 2, 0).numpy().astype(np.float64), **how)
    last = [name for name, kind, _, _ in layers if name.startswith("relu5_")][-1]
    names = {"conv5": last, "pool5": "pool5", "fc6": "relu6", "fc7": "relu7", "fc8": "fc8"}
    return {name: torch.from_numpy(maps[theirs]).permute(2, 0, 1)[None] for name, theirs in names.items()}


@pytest.mark.parametrize("config", "ABCDE")
@pytest.mark.parametrize(
    ("old", "ceil", "side"), [(True, True, (230, 261)), (False, True, (193, 257)), (False, False, (255, 224))]
)
def test_every_map_is_that_of_the_formulas(tmp_path, config, old, ceil, side):
    layers, pixels = narrow(config), image(*side)
    backbone = load(tmp_path, simplenn(layers, old=old, ceil=ceil))
    assert (backbone.model.config, backbone.model.pool) == (config, "ceil" if ceil else "floor")
    shares = difference(scipy_maps(layers, pixels, ceil=ceil), our_maps(backbone, pixels))
    assert max(shares.values()) < 1e-5, shares


@pytest.mark.parametrize("old", [False, True])
def test_normalisation_is_that_of_vl_nnnormalize(tmp_path, old):
    layers, pixels = narrow("A", lrn=True), image()
    backbone = load(tmp_path, simplenn(layers, old=old))
    assert backbone.model.config == "A-LRN"
    shares = difference(scipy_maps(layers, pixels), our_maps(backbone, pixels))
    assert max(shares.values()) < 1e-5, shares


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("whole", [False, True])
def test_one_net_saved_in_many_ways(tmp_path, old, compressed, dtype, whole):
    layers = narrow("C")
    variables = simplenn(layers, old=old, dtype=dtype)
    backbone = load(tmp_path, {"net": variables} if whole else variables, compressed=compressed)
    told = backbone.imported
    assert told["matconvnet"] == ("before 1.0-beta17" if old else "1.0-beta17 or later")
    assert (told["channel_order"], told["fc6_order"], told["mean_from"]) == ("RGB", "convolution", "the file")
    expected = {name: arrays for name, _, _, arrays in layers if arrays}
    for name, layer in backbone.model.layers.items():
        assert np.array_equal(layer.weight.numpy(), expected[name][0])
        assert np.array_equal(layer.bias.numpy(), expected[name][1])
    assert backbone.mean == pytest.approx(IMAGENET_MEAN)


def test_layers_as_an_array_of_structs_and_other_variables_beside_them(tmp_path):
    variables = simplenn(narrow())
    variables["layers"][0][1]["leak"] = variables["layers"][0][4]["leak"] = 0.0
    variables["layers"][0][0]["dilate"] = 1.0
    fields = sorted({field for struct in variables["layers"][0] for field in struct})
    rows = [tuple(struct.get(field, []) for field in fields) for struct in variables["layers"][0]]
    variables["layers"] = np.array([rows], dtype=[(field, object) for field in fields])
    variables |= {"history": np.zeros((100, 100)), "note": "hello", "trained": True, "z": 1j}
    found, expected = load(tmp_path, variables).model, load(tmp_path, simplenn(narrow())).model
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())


def test_class_names_come_from_the_file(tmp_path):
    wnids = tuple(f"n{index:08}" for index in range(10))
    for old in (False, True):
        assert load(tmp_path, simplenn(narrow(), old=old, classes=wnids)).classes == wnids
    assert load(tmp_path, simplenn(narrow())).classes == ()


def test_the_mean_is_a_pixel_or_that_of_an_image_or_the_published_one(tmp_path):
    def settled(mean, old=False):
        backbone = load(tmp_path, simplenn(narrow(), old=old, mean=mean))
        return backbone.mean, backbone.imported["mean_from"]

    image = np.zeros((224, 224, 3))
    image[:112] = [2, 4, 8]  # the other half is black
    for old in (False, True):
        assert settled(image, old) == ((1.0, 2.0, 4.0), "the mean image in the file, averaged")
        assert settled(np.array([[[1.0, 2.0, 4.5]]]), old) == ((1.0, 2.0, 4.5), "the file")
    assert settled(np.array([[1.0], [2.0], [4.5]])) == ((1.0, 2.0, 4.5), "the file")
    variables = simplenn(narrow())
    del variables["meta"]
    backbone = load(tmp_path, variables)
    assert (backbone.mean, backbone.imported["mean_from"]) == (
        IMAGENET_MEAN,
        "assumed: published with the authors' nets",
    )
    for wrong in (np.zeros((2, 2)), np.array([1.0, np.nan, 2.0]), "grey", np.full((4, 4, 3), 1e308)):
        with pytest.raises(WeightsError, match="averageImage: expected"):
            settled(wrong)


def test_a_net_with_one_class_and_settings_of_either_length(tmp_path):
    variables = simplenn(narrow(classes=1))  # MATLAB drops the last axis of 1 x 1 x 128 x 1
    for layer in variables["layers"][0]:
        if layer["type"] == "conv":
            layer["stride"] = [1.0, 1.0]
        if layer["type"] == "pool":
            layer["pool"], layer["stride"] = 2.0, [2.0, 2.0]
    fc8 = next(layer for layer in variables["layers"][0] if layer["name"] == "fc8")
    fc8["weights"][0][0] = fc8["weights"][0][0][..., 0]
    assert load(tmp_path, variables).model.num_classes == 1


def test_whole_numbers_are_stored_in_fewer_bytes(tmp_path):
    # MATLAB saves a double array of whole numbers as int8; SciPy doesn't, so this one is made by hand.
    def array(kind, axes, storage, content):
        parts = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(axes)}i", *axes))
        return element(14, parts + element(1, b"") + element(storage, content))

    biases = array(6, (1, 2), 1, b"\xff\x02")
    variables = simplenn(narrow(classes=2))
    fc8 = next(layer for layer in variables["layers"][0] if layer["name"] == "fc8")
    fc8["weights"][0][1] = np.array([[1.5e-300, 2.5e-300]])
    save(tmp_path / "net.mat", variables, compressed=False)
    content = (tmp_path / "net.mat").read_bytes()
    marked = array(6, (1, 2), 9, struct.pack("<dd", 1.5e-300, 2.5e-300))
    assert content.count(marked) == 1
    at = content.index(marked)
    short = element(14, biases[8:] + bytes(len(marked) - len(biases)))  # the rest of the array is passed over
    (tmp_path / "net.mat").write_bytes(content[:at] + short + content[at + len(marked) :])
    assert load_here(tmp_path / "net.mat", "matconvnet").model.layers["fc8"].bias.tolist() == [-1.0, 2.0]


def change_layer(name, **fields):
    def change(variables):
        layer = next(layer for layer in variables["layers"][0] if layer["name"] == name)
        for field, value in fields.items():
            layer[field] = value(layer[field]) if callable(value) else value

    return change


def first_array(function):
    return lambda weights: cell([function(weights[0][0].copy()), weights[0][1]])


def with_nan(array):
    array[0, 0, 0, 0] = np.nan
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_layer("relu1_1", type="bnorm"), "relu1_1: .* found one of type bnorm; it is of another network"),
        (change_layer("relu1_1", leak=0.1), r"relu1_1: expected leak = 0, found 0.1"),
        (change_layer("conv2_1", dilate=2.0), r"conv2_1: expected dilate = 1, found 2"),
        (change_layer("conv2_1", stride=[1.0, 2.0]), r"conv2_1: expected stride 1 .*found stride \[1, 2\]"),
        (change_layer("conv2_1", pad=[1.0, 1.0]), "conv2_1: pad: expected 1 or 4 numbers, found 2"),
        (change_layer("conv2_1", pad="same"), "conv2_1: pad: expected a number or a few"),
        (change_layer("conv2_1", pad=[0.0, 1.0, 0.0, 1.0]), r"conv2_1: .*padding \[0, 1, 0, 1\]"),
        (change_layer("pool1", method="avg"), "pool1: expected method max, found 'avg'"),
        (change_layer("pool1", pad=[1.0, 0.0, 1.0, 0.0]), r"pool1: .* padding \[1, 0, 1, 0\]"),
        (change_layer("pool1", pad=0.0), "one rounding of all poolings"),
        (change_layer("pool1", pool=[3.0, 3.0]), r"found pool 'pool1' of shape \(3, 3\)"),
        (change_layer("conv2_1", weights=first_array(lambda a: a.astype(np.int8))), "conv2_1.weight: .* found int8"),
        (change_layer("conv2_1", weights=first_array(lambda a: a * 1j)), "conv2_1: expected weights and biases"),
        (change_layer("conv2_1", weights=first_array(with_nan)), "conv2_1.weight: expected finite"),
        (change_layer("conv2_1", weights=first_array(lambda a: a[:, :, 1:])), "conv2_1.weight: expected shape"),
        (change_layer("conv2_1", weights=first_array(lambda a: a[None])), "found conv 'conv2_1'"),
        (change_layer("conv2_1", weights=lambda pair: pair[:, :1]), "conv2_1: expected weights and biases"),
        (change_layer("fc8", weights=lambda pair: cell([pair[0][0], np.zeros((3, 1))])), "fc8.bias: expected shape"),
        (lambda variables: variables.pop("layers"), "expected the variables layers and meta of a SimpleNN, found meta"),
        (lambda variables: variables.update(layers=cell([1.0])), "layer 1: expected a struct with a type"),
        (lambda variables: variables.update(layers=cell([])), "found the end"),
        (lambda variables: variables.update(params=[1.0]), "expected a SimpleNN, found a DagNN"),
        (lambda variables: variables["meta"].update(classes={"name": cell(["a"])}), "a class name for each of the 10"),
    ],
)
def test_other_nets(tmp_path, change, message):
    variables = simplenn(narrow())
    change(variables)
    with pytest.raises(WeightsError, match=message) as caught:
        load(tmp_path, variables)
    assert "net.mat" in str(caught.value)


def test_files_of_version_7_3_and_4(tmp_path):
    with h5py.File(tmp_path / "net.mat", "w", userblock_size=512) as file:
        file["x"] = 1
    with (tmp_path / "net.mat").open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    with pytest.raises(WeightsError, match=r"found version 7.3 \(HDF5\); .* save\('-v7', ...\)"):
        load_here(tmp_path / "net.mat", "matconvnet")
    savemat(tmp_path / "net.mat", {"x": np.zeros((20, 20))}, format="4")
    with pytest.raises(WeightsError, match="expected a MATLAB file of version 5 to 7, found another"):
        load_here(tmp_path / "net.mat", "matconvnet")


def element(kind, content):
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def head(kind, axes, name=b"", flags=0):
    sides = element(5, struct.pack(f"<{len(axes)}i", *axes))
    return element(6, struct.pack("<II", kind | flags << 8, 0)) + sides + element(1, name)


def write(tmp_path, *elements):
    path = tmp_path / "net.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"".join(elements))
    return path


def layers_variable(content, axes=(1, 1), kind=1):
    return element(14, head(kind, axes, b"layers") + content)


def nested_cells(depth):
    content = b""
    for _ in range(depth):
        content = element(14, head(1, (1, 1)) + content) if content else element(14, head(1, (0, 0)))
    return content


def fields(longest, names):
    return element(5, struct.pack("<i", longest)) + element(1, names)


BOMB = struct.pack("<II", 14, 2**31) + head(6, (2**15, 2**15, 1), b"layers") + struct.pack("<II", 9, 2**30)
BOMB = zlib.compress(BOMB + bytes(64 << 20))


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ([], "found none of them"),
        ([struct.pack("<II", 14, 1000)], "an array of 1000 bytes, where 0 are left"),
        ([struct.pack("<II", 15, 2**32 - 1)], "an array of 4294967295 bytes"),
        ([struct.pack("<II", 15, len(BOMB)) + BOMB], f"{2**30} bytes, where at most [0-9]+ can be left"),
        ([element(15, b"nothing that was compressed")], "expected compressed arrays, found damaged ones"),
        ([element(15, zlib.compress(bytes(4)))], "the end of the data"),
        ([layers_variable(element(9, bytes(8)), (2**31 - 1, 2**31 - 1), 6)], "8 bytes of type 9 for an array of shape"),
        ([layers_variable(b"", (2**31 - 1, 1))], "8 bytes, where at most 0 can be left"),
        ([layers_variable(fields(32, b"a" * 32), (2**31 - 1, 1), 2)], "8 bytes, where at most 0 can be left"),
        ([layers_variable(fields(32, b""), (2**31 - 1, 1), 2)], "expected the layers of a net"),
        ([layers_variable(fields(0, b""), (1, 1), 2)], "names of fields of 0 bytes"),
        ([layers_variable(fields(-1, b""), (1, 1), 2)], "names of fields of 4294967295 bytes"),
        ([layers_variable(nested_cells(MOST_DEPTH + 1))], f"arrays in arrays, more than {MOST_DEPTH} deep"),
        ([layers_variable(element(14, b"") * 3, (1, 3))], "layer 1: expected a struct with a type"),
        ([layers_variable(element(9, bytes(8)))], "an element of type 9 with 8 bytes in the place of an array"),
        ([layers_variable(struct.pack("<II", 14, 2**31))], "an element of type 14 with 2147483648 bytes"),
        ([layers_variable(b"", (1,))], "an array with 1 axes"),
        ([layers_variable(b"", (1,) * 33)], "an array with 33 axes"),
        ([layers_variable(element(1, b"x"), kind=3)], "layer 1: expected a struct"),
        ([element(14, head(17, (1, 1), b"net"))], "SimpleNN"),
        ([element(14, head(3, (1, 1), b"net"))], "net: expected the struct of a SimpleNN, found object, as DagNN are"),
        ([layers_variable(element(14, head(1, (0, 0))) * 500, (1, 500))], "more than 500 arrays"),
        ([element(14, b"")] * 501, "more than 500 arrays"),
        ([layers_variable(element(14, b"") * 501, (1, 501))], "more than 500 arrays"),
        ([layers_variable(element(5, b"\xff" * 5000), (1, 1), 2)], "8 bytes, where at most 0 can be left"),
        ([layers_variable(element(5, b"\xff" * 5000) + element(1, b""), (1, 1), 2)], f"of fields of {2**64 - 1} bytes"),
        ([layers_variable(fields(1, b"a" * 1001), (0, 0), 2)], "1001 bytes of names of fields of 1 bytes each"),
        ([layers_variable(b"", (0, 0))] * 2, "two variables layers"),
    ],
)
def test_damaged_and_hostile_files(tmp_path, monkeypatch, elements, message):
    monkeypatch.setattr(mat5, "MOST_ARRAYS", 500)
    path = write(tmp_path, *elements)
    tracemalloc.start()
    with pytest.raises(WeightsError, match=message):
        load_here(path, "matconvnet")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 30 << 20


def test_an_array_may_inflate_to_a_few_times_its_size_but_no_further(tmp_path):
    length = 24 << 20
    content = head(6, (length // 8, 1), b"layers") + element(9, bytes(length))
    bomb = zlib.compress(element(14, content))
    assert length > MOST_INFLATED * len(bomb)
    with pytest.raises(WeightsError, match=f"{length} bytes, where at most [0-9]+ can be left"):
        load_here(write(tmp_path, struct.pack("<II", 15, len(bomb)) + bomb), "matconvnet")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_is_cut_off_anywhere(tmp_path, compressed):
    path = tmp_path / "net.mat"
    variables = simplenn(narrow())
    variables = {"meta": variables["meta"], "layers": variables["layers"]}
    save(path, variables, compressed=compressed)
    content = path.read_bytes()
    for length in range(0, len(content), len(content) // 50):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"net\.mat"):
            load_here(path, "matconvnet")


def test_a_changed_byte_in_compressed_numbers_is_noticed(tmp_path):
    path = tmp_path / "net.mat"
    save(path, {"layers": simplenn(narrow())["layers"]})
    content = path.read_bytes()
    for position in range(136, len(content), len(content) // 40):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        with pytest.raises(WeightsError, match=r"net\.mat"):
            load_here(path, "matconvnet")
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 0x10]))  # of the checksum
    with pytest.raises(WeightsError, match="incorrect data check"):
        load_here(path, "matconvnet")


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_stays_within_a_small_multiple_of_the_file(tmp_path, compressed):
    save(tmp_path / "net.mat", simplenn(narrow("D", width=8, fc=512)), compressed=compressed)
    load_here(tmp_path / "net.mat", "matconvnet")
    tracemalloc.start()
    load_here(tmp_path / "net.mat", "matconvnet")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2.5 * (tmp_path / "net.mat").stat().st_size + (1 << 20)


def test_the_mean_of_the_reference_is_the_published_one():
    assert tuple(MEAN) == IMAGENET_MEAN
