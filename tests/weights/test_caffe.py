"""Caffe's .caffemodel: next to OpenCV's own reader and forward pass, however it was written; and what is refused."""

import tracemalloc

import numpy as np
import pytest
import torch

from caffe_files import blob, caffemodel, layer_message, layers_of, nested, number, prototxt, single, varint
from other_nets import difference, image, our_maps
from reading import load_here
from vggfeat.errors import WeightsError
from vggfeat.formats import protobuf as wire
from vggfeat.weights import IMAGENET_MEAN

cv2 = pytest.importorskip("cv2")

BGR_MEAN = (103.939, 116.779, 123.68)  # as in the authors' deploy files


@pytest.fixture(autouse=True)
def one_thread():
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


def narrow(config="A", **settings):
    return layers_of(config, **({"width": 2, "fc": 128, "classes": 10} | settings))


def load(tmp_path, content):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content)
    return load_here(path, "caffe")


def load_layers(tmp_path, layers, **form):
    return load(tmp_path, caffemodel(layers, **form))


def opencv_maps(layers, pixels, **form):
    """All the maps as (1, C, h, w), with Caffe's preprocessing: BGR, less the mean."""
    height, width = pixels.shape[1:]
    texts = prototxt(layers, height, width).encode(), caffemodel(layers, **form)
    net = cv2.dnn.readNetFromCaffe(*(np.frombuffer(text, np.uint8) for text in texts))
    net.enableWinograd(False)  # fewer multiplications, but 10 times the error
    bgr = pixels.permute(1, 2, 0).numpy()[:, :, ::-1].astype(np.float32)
    net.setInput(cv2.dnn.blobFromImage(bgr, mean=BGR_MEAN))
    last = [name for name, kind, _, _ in layers if name.startswith("relu5_")][-1]
    names = {"conv5": last, "pool5": "pool5", "fc6": "relu6", "fc7": "relu7", "fc8": "fc8"}
    maps = zip(names, net.forward(list(names.values())), strict=True)
    return {name: found.reshape((*found.shape, 1, 1)[:4]) for name, found in maps}


@pytest.mark.parametrize("config", "ABCDE")
@pytest.mark.parametrize(
    ("form", "dense", "side"), [("V1", False, (224, 224)), ("V2", True, (230, 301)), ("V2", True, (257, 288))]
)
def test_every_map_is_opencvs(tmp_path, config, form, dense, side):
    layers, pixels = narrow(config, dense=dense), image(*side)
    backbone = load_layers(tmp_path, layers, form=form)
    assert (backbone.model.config, backbone.model.pool, backbone.model.num_classes) == (config, "ceil", 10)
    shares = difference(opencv_maps(layers, pixels, form=form), our_maps(backbone, pixels))
    assert max(shares.values()) < 1e-5, shares


def test_the_normalisation_of_net_a_is_opencvs(tmp_path):
    layers, pixels = narrow("A", lrn=True), image()
    backbone = load_layers(tmp_path, layers)
    assert backbone.model.config == "A-LRN"
    # OpenCV overlooks k, which then is 1: (2 + s)^-b = 2^-b (1 + s / 2)^-b.
    theirs = [(*layer[:2], dict(layer[2]), list(layer[3])) for layer in layers]
    theirs[2][2].update(alpha=2.5e-4, k=1.0)
    theirs[4][3][0] = theirs[4][3][0] * np.float32(2**-0.75)
    assert theirs[2][1:2] + theirs[4][:1] == ("LRN", "conv2_1")
    shares = difference(opencv_maps(theirs, pixels), our_maps(backbone, pixels))
    assert max(shares.values()) < 1e-5, shares
    without = difference(opencv_maps(narrow("A"), pixels), our_maps(backbone, pixels))
    assert max(without.values()) > 0.01


def test_the_colours_are_turned_in_the_first_layer_alone(tmp_path):
    layers = narrow("D")
    backbone = load_layers(tmp_path, layers)
    arrays = {name: [torch.from_numpy(array) for array in arrays] for name, _, _, arrays in layers if arrays}
    for name, layer in backbone.model.layers.items():
        weights, biases = arrays[name]
        weights = weights.flip(1) if name == "conv1_1" else weights.reshape(layer.weight.shape)
        assert torch.equal(layer.weight, weights)
        assert torch.equal(layer.bias, biases)
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("form", "dense", "way"),
    [
        ("V1", True, {}),
        ("V2", False, {}),
        ("V1", False, {"double": True}),
        ("V2", True, {"double": True}),
        ("V1", False, {"packed": False, "double": True}),
        ("V2", True, {"packed": False}),
    ],
)
def test_one_net_written_in_many_ways(tmp_path, form, dense, way):
    layers = narrow("B", width=1, fc=64, dense=dense)
    expected = load_layers(tmp_path, narrow("B", width=1, fc=64)).model.state_dict()
    backbone = load_layers(tmp_path, layers, form=form, **way)
    assert backbone.imported["caffe_layers"] == form
    assert backbone.imported["layer_names"]["conv5_2"] == "conv5_2"
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("form", ["V1", "V2"])
def test_height_and_width_may_be_said_apart(tmp_path, form):
    layers = narrow("B", width=1, fc=64)
    expected = load_layers(tmp_path, layers).model.state_dict()
    for _, kind, settings, _ in layers:
        for name in {"Convolution": ("pad", "kernel_size"), "Pooling": ("stride", "kernel_size")}.get(kind, ()):
            side = settings.pop(name)
            settings |= {f"{name.removesuffix('_size')}_{axis}": side for axis in "hw"}
    backbone = load_layers(tmp_path, layers, form=form)
    assert backbone.model.config == "B"
    assert all(torch.equal(tensor, expected[name]) for name, tensor in backbone.model.state_dict().items())


def test_layers_go_by_their_order_and_names_are_kept(tmp_path):
    layers = [(f"{name}x", *rest) for name, *rest in narrow("C")]
    backbone = load_layers(tmp_path, layers, name="my net")
    assert backbone.model.config == "C"
    assert backbone.imported["layer_names"]["conv3_3"] == "conv3_3x"
    assert backbone.imported["name_in_file"] == "my net"


def test_poolings_told_to_round_down(tmp_path):
    layers = narrow()
    for layer in layers:
        if layer[1] == "Pooling":
            layer[2]["round_mode"] = 1
    assert load_layers(tmp_path, layers).model.pool == "floor"
    del layer_of(layers, "pool3")[2]["round_mode"]
    with pytest.raises(WeightsError, match="one rounding of all poolings"):
        load_layers(tmp_path, layers)


def layer_of(layers, name):
    return next(layer for layer in layers if layer[0] == name)


def data(**transform):
    return ("data", "Data", transform, [])


@pytest.mark.parametrize("form", ["V1", "V2"])
def test_preprocessing_in_the_file_goes_before_what_was_published(tmp_path, form):
    def settled(*first):
        backbone = load_layers(tmp_path, [*first, *narrow(width=1, fc=64)], form=form)
        return backbone.mean, backbone.std, backbone.imported["mean_from"]

    published = "assumed: published with the authors' nets"
    assert settled(data()) == (IMAGENET_MEAN, (1.0, 1.0, 1.0), published)
    assert settled(data(mean_value=[1.0, 2.0, 4.0], scale=0.25)) == ((4.0, 2.0, 1.0), (4.0, 4.0, 4.0), "the file")
    assert settled(data(mean_value=[7.0])) == ((7.0, 7.0, 7.0), (1.0, 1.0, 1.0), "the file")
    twice = data(mean_value=[1.0, 2.0, 4.0])
    assert settled(twice, twice)[0] == (4.0, 2.0, 1.0)
    named = settled(data(mean_file="mean.binaryproto"))
    assert named == (IMAGENET_MEAN, (1.0, 1.0, 1.0), f"{published}, in the place of mean.binaryproto")
    with pytest.raises(WeightsError, match="one mean and scale in all data layers, found 2"):
        settled(twice, data(mean_value=[1.0, 2.0, 3.0]))
    for wrong in ({"mean_value": [1.0, 2.0]}, {"mean_value": [float("nan")]}, {"scale": 0.0}, {"scale": -1.0}):
        with pytest.raises(WeightsError, match="expected 3 mean values and a scale above 0"):
            settled(data(**wrong))


def changed(name, settings=None, arrays=None, kind=None):
    def change(layers):
        index = layers.index(layer_of(layers, name))
        _, was, old, numbers = layers[index]
        layers[index] = (name, kind or was, {**old, **(settings or {})}, arrays(numbers) if arrays else numbers)

    return change


def with_value(value):
    def change(arrays):
        arrays[0].ravel()[3] = value
        return arrays

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("relu1_1", kind="BatchNorm"), r"relu1_1: expected .* found one of type BatchNorm"),
        (changed("relu1_1", kind="Scale"), "found one of type Scale"),
        (changed("relu1_1", {"negative_slope": 0.1}), "relu1_1: expected negative_slope = 0, found 0.1"),
        (changed("conv2_1", {"group": 2}), "conv2_1: expected group = 1, found 2"),
        (changed("conv2_1", {"dilation": 2}), "conv2_1: expected dilation = 1, found 2"),
        (changed("conv2_1", {"stride": 2}), r"conv2_1: expected stride 1 and padding 1, found stride \[2\]"),
        (changed("conv2_1", {"pad": 0}), r"conv2_1: .* padding \[0, 0, 0, 0\]"),
        (changed("pool2", {"pool": 1}), "pool2: expected pool = 0, found 1"),
        (changed("pool2", {"stride": 1}), r"pool2: expected stride 2"),
        (changed("pool2", {"pad": 1}), r"pool2: .* padding \[1, 1, 1, 1\]"),
        (changed("pool2", {"kernel_size": 3}), r"expected .* pool2 of net A .* found pool 'pool2' of shape \(3, 3\)"),
        (changed("fc7", {"transpose": 1}), "fc7: expected transpose = 0"),
        (changed("fc7", {"axis": 2}), "fc7: expected axis = 1"),
        (changed("conv2_1", arrays=lambda a: a[:1]), "conv2_1: expected weights and biases, found 1 arrays"),
        (changed("conv2_1", arrays=lambda a: []), "conv2_1: expected weights and biases, found 0 arrays"),
        (changed("conv5_1", arrays=lambda a: [a[0][:, :7], a[1]]), r"conv5_1.weight: expected shape"),
        (changed("conv2_1", arrays=lambda a: [a[0], a[1][1:]]), r"conv2_1.bias: expected shape"),
        (changed("conv2_1", arrays=lambda a: [a[0][..., :2, :2], a[1]]), r"found conv 'conv2_1' of shape"),
        (changed("conv2_1", arrays=with_value(np.nan)), "conv2_1.weight: expected finite numbers"),
        (changed("fc6", arrays=lambda a: [a[0][:, 1:], a[1]]), "fc6.weight: expected"),
        (lambda layers: layers.pop(), None),
        (lambda layers: layers.__delitem__(slice(3, None)), "as layer .* found the end"),
        (lambda layers: layers.append(layers[0]), "the end of net A .* found conv 'conv1_1'"),
        (lambda layers: layers.pop(1), "the ReLU after conv1_1 of net A as layer 2, found pool 'pool1'"),
    ],
)
def test_other_nets(tmp_path, change, message):
    layers = narrow(width=1, fc=64)
    change(layers)
    if message is None:  # the soft-max says nothing
        assert load_layers(tmp_path, layers).model.config == "A"
        return
    with pytest.raises(WeightsError, match=message) as caught:
        load_layers(tmp_path, layers)
    assert "net.caffemodel" in str(caught.value)


def test_another_normalisation(tmp_path):
    layers = narrow(lrn=True)
    layer_of(layers, "norm1")[2]["k"] = 1.0
    with pytest.raises(WeightsError, match=r"norm1: expected .* k = 2, alpha = 0.0001, .* found 5, 1, 0.0001, 0.75"):
        load_layers(tmp_path, layers)


def test_doubles_that_single_precision_cannot_hold(tmp_path):
    layers = narrow(width=1, fc=64)
    weights, biases = layers[0][3]
    layers[0][3][:] = [weights.astype(np.float64), biases]
    layers[0][3][0][0, 0, 0, 0] = 1e300
    with pytest.raises(WeightsError, match=r"conv1_1.weight: expected finite numbers"):
        load_layers(tmp_path, layers, double=True)


def test_half_a_number_of_double_data_is_none(tmp_path):
    layers = narrow(width=1, fc=64)
    content = b"".join(
        nested(
            100,
            layer_message(*layer[:3], [], "V2", False, True)
            + b"".join(nested(7, blob(array, form="V2") + nested(8, bytes(4))) for array in layer[3]),
        )
        for layer in layers
    )
    assert load(tmp_path, content).model.config == "A"


def one_layer(content):
    return nested(1, "VGG") + nested(100, nested(1, "conv1_1") + nested(2, "Convolution") + content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "layers of one form, V1 or V2, found none"),
        (nested(1, "VGG"), "found none"),
        (nested(2, b"") + nested(100, b""), "found both"),
        (nested(2, nested(1, nested(1, "conv1"))), "V0; write the file again with Caffe's upgrade_net_proto_binary"),
        (nested(100, b"") * 1001, "1001 messages in field 100"),
        (one_layer(varint(7 << 3 | 2) + varint(2**40)), f"field 7 of {2**40} bytes, where 0 are left"),
        (one_layer(varint(7 << 3 | 2) + b"\xff" * 11), "an integer without an end"),
        (one_layer(varint(7 << 3 | 3)), "a field 7 of type 3"),
        (one_layer(varint(2) + b"\x00"), "a field 0 of type 2"),
        (one_layer(nested(1, "x" * 1001)), "a name of 1001 bytes"),
        (one_layer(nested(7, number(1, 2**40) + single(5, 0.0)) * 2), r"its shape \[1099511627776\] says, found 1"),
        (one_layer(nested(7, number(1, 2) * 40 + single(5, 0.0)) * 2), "found 1"),
        (nested(1, "VGG") + number(9, 0) * 10_000, "more than 10000 fields"),
    ],
)
def test_damaged_and_hostile_files(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(wire, "MOST_FIELDS", 10_000)
    with pytest.raises(WeightsError, match=message):
        load(tmp_path, content)


def test_a_file_that_is_cut_off_anywhere(tmp_path):
    content = caffemodel(narrow(width=1, fc=64))
    layers = narrow(width=1, fc=64)
    ends = [len(caffemodel(layers[:count])) for count in range(len(layers) + 1)]
    usable = ends[["pool5" in layer[:2] for layer in layers].index(True) + 1 :]
    for length in sorted({*range(0, len(content), len(content) // 50), *(end + 1 for end in ends[:-2]), *ends[:-2]}):
        if length in usable:  # no byte says that layers are missing, but the net does, and serves up to there
            assert load(tmp_path, content[:length]).model.last
            continue
        with pytest.raises(WeightsError, match=r"net\.caffemodel"):
            load(tmp_path, content[:length])


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(WeightsError, match="can't read: No such file"):
        load_here(tmp_path / "nothing.caffemodel", "caffe")


@pytest.mark.parametrize("double", [False, True])
def test_memory_stays_within_a_small_multiple_of_the_file(tmp_path, double):
    content = caffemodel(narrow("D", width=8, fc=512), double=double)
    load(tmp_path, content)
    tracemalloc.start()
    load(tmp_path, content)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2.1 * len(content) + (1 << 20)


def test_gradients_in_the_file_are_passed_over(tmp_path):
    # Solvers also save `diff`, as long as the data: it is passed over.
    layers = narrow(width=1, fc=64)
    plain = load_layers(tmp_path, layers).model.state_dict()
    content = nested(1, "VGG")
    for name, kind, settings, arrays in layers:
        blobs = b"".join(nested(7, blob(a, form="V2") + nested(6, a.tobytes())) for a in arrays)
        content += nested(100, layer_message(name, kind, settings, [], "V2", False, True) + blobs)
    found = load(tmp_path, content).model.state_dict()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
