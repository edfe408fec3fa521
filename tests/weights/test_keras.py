"""Keras's files of every age, next to Keras's own forward pass; and HDF5 that leads elsewhere."""

import json
import os
import warnings
import zipfile
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from other_nets import NARROW, difference, image, our_maps
from reading import load_here
from vggfeat.classification.extract import match_classes
from vggfeat.errors import ConfigError, WeightsError
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.weights import IMAGENET_MEAN, load_backbone, save_weights

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras meets NumPy 2

BLOCKS = {"D": (2, 2, 3, 3, 3), "E": (2, 2, 4, 4, 4)}
NAMES = {"conv5": "block5_conv3", "pool5": "block5_pool", "fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}


@pytest.fixture(scope="module")
def keras():
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("KERAS_BACKEND", "torch")
        warnings.simplefilter("ignore")  # Keras's own, of NumPy's and of its old formats
        yield pytest.importorskip("keras")


def build(keras, letter="D", *, named=True, side=224):
    """The layers of keras.applications.vgg16 and vgg19, under their names, in the order of their source."""
    layers = keras.layers
    name = (lambda text: {"name": text}) if named else (lambda text: {})
    x = start = layers.Input((side, side, 3))
    for block, (count, channels) in enumerate(zip(BLOCKS[letter], (64, 128, 256, 512, 512), strict=True), start=1):
        for index in range(1, count + 1):
            settings = {"activation": "relu", "padding": "same"} | name(f"block{block}_conv{index}")
            x = layers.Conv2D(channels // NARROW, (3, 3), **settings)(x)
        x = layers.MaxPooling2D((2, 2), strides=(2, 2), **name(f"block{block}_pool"))(x)
    x = layers.Flatten(**name("flatten"))(x)
    x = layers.Dense(4096 // NARROW, activation="relu", **name("fc1"))(x)
    x = layers.Dense(4096 // NARROW, activation="relu", **name("fc2"))(x)
    x = layers.Dense(10, **name("predictions"))(x)
    model = keras.Model(start, x)
    rng = np.random.default_rng(4)
    for weight in model.weights:
        deviation = (2 / np.prod(weight.shape[:-1])) ** 0.5 if len(weight.shape) > 1 else 0.1
        weight.assign(rng.normal(0, deviation, weight.shape).astype("float32"))
    return model


def keras_maps(keras, model, pixels):
    """Maps as (1, C, h, w), from an image as Keras reads one: (height, width, RGB)."""
    rgb = pixels.permute(1, 2, 0).numpy().astype("float32")[None]
    x = keras.applications.imagenet_utils.preprocess_input(rgb, mode="caffe", data_format="channels_last")
    convolutions = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    outputs = {name: model.get_layer(theirs) for name, theirs in (NAMES | {"conv5": convolutions[-1]}).items()}
    with torch.inference_mode():
        ys = keras.Model(model.input, [layer.output for layer in outputs.values()])(x)
    maps = {name: torch.as_tensor(y.detach().numpy()) for name, y in zip(outputs, ys, strict=True)}
    return {name: y.permute(0, 3, 1, 2) if y.ndim == 4 else y[:, :, None, None] for name, y in maps.items()}


@pytest.fixture(scope="module")
def saved(keras, tmp_path_factory):
    """One net in each form that Keras writes, and what Keras makes of an image."""
    from keras.src.legacy.saving import legacy_h5_format

    folder = tmp_path_factory.mktemp("keras")
    model, unnamed = build(keras), build(keras, named=False)
    model.save_weights(folder / "named.weights.h5")
    unnamed.save_weights(folder / "unnamed.weights.h5")
    model.save(folder / "whole.h5")
    unnamed.save(folder / "whole_unnamed.h5")
    with h5py.File(folder / "keras_2.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    with h5py.File(folder / "named.weights.h5") as source, h5py.File(folder / "older.weights.h5", "w") as target:
        source.copy("layers", target, name="_layer_checkpoint_dependencies")
        target.visititems(lambda _, item: item.attrs.pop("name", None) and None)
    arrays = {layer.name: [np.asarray(w.value.detach()) for w in layer.weights] for layer in model.layers}
    write_keras_1(folder / "keras_1.h5", arrays)
    return SimpleNamespace(folder=folder, model=model, arrays=arrays, maps=keras_maps(keras, model, image()))


def write_keras_1(path, arrays):
    """As the published vgg16_weights_tf_dim_ordering_tf_kernels.h5 is laid out."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in arrays]
        for layer, values in arrays.items():
            names = [f"{layer}_{kind}_1:0" for kind in "Wb"[: len(values)]]
            file.create_group(layer).attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, values, strict=True):
                file[layer].create_dataset(name, data=value)


FORMS = ["keras_1.h5", "keras_2.h5", "whole.h5", "whole_unnamed.h5"]
FORMS += ["named.weights.h5", "unnamed.weights.h5", "older.weights.h5"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_kerass_maps(saved, form):
    backbone = load_backbone(saved.folder / form)
    shares = difference(saved.maps, our_maps(backbone, image()))
    assert max(shares.values()) < 1e-4, shares
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, (1.0, 1.0, 1.0))
    told = backbone.describe()["imported"]
    assert (told["format"], told["fc6_order"], told["pool_rounding"]) == ("Keras", "H,W,C", "floor")
    assert told["channel_order"] == "BGR, turned to RGB in conv1_1"
    assert json.loads(json.dumps(told)) == told


def test_net_e_and_sides_that_are_no_multiples_of_32(keras, tmp_path):
    model = build(keras, "E", side=250)
    model.save_weights(tmp_path / "e.weights.h5")
    backbone = load_backbone(tmp_path / "e.weights.h5")
    assert backbone.model.config == "E"
    shares = difference(keras_maps(keras, model, image(250, 250)), our_maps(backbone, image(250, 250)))
    assert max(shares.values()) < 1e-4, shares


def test_the_layers_are_those_of_kerass_own_vgg(keras, saved):
    own = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), include_top=False)
    ours = [layer.name for layer in saved.model.layers][1:-4]
    assert [layer.name for layer in own.layers][1:] == ours


def rewrite(saved, path, **changes):
    """keras_1.h5 with some arrays replaced or, for None, left out."""
    write_keras_1(path, {k: v for k, v in (saved.arrays | changes).items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("missing", "last", "noted"),
    [
        (("fc1", "fc2", "predictions"), "pool5", "fc6, fc7, fc8"),
        (("fc2", "predictions"), "fc6", "fc7, fc8"),
        (("predictions",), "fc7", "fc8"),
        (("fc2",), "fc6", "fc7, and fc8 of no use behind them"),
    ],
)
def test_a_file_without_some_of_the_last_layers_serves_for_what_it_holds(saved, tmp_path, missing, last, noted):
    backbone = load_backbone(rewrite(saved, tmp_path / "notop.h5", **dict.fromkeys(missing)))
    assert (backbone.model.last, backbone.imported["without"]) == (last, noted)
    there = dict(list(saved.maps.items())[: list(saved.maps).index(last) + 1])
    assert max(difference(there, our_maps(backbone, image())).values()) < 1e-4
    assert (backbone.model.num_classes, list(backbone.model.maps)[-len(there) :]) == (0, list(there))
    with pytest.raises(ConfigError, match=f"layer: expected one of relu1_1, .*{last}, found 'fc8'"):
        feature_runner(backbone, ExtractionSettings(layer="fc8"))
    with pytest.raises(ConfigError, match="expected 1000 classes, as the data have, found 0"):
        match_classes(backbone, [f"n{number}" for number in range(1000)])
    save_weights(tmp_path / "own.safetensors", backbone.model, mean=backbone.mean)
    again = load_backbone(tmp_path / "own.safetensors")
    assert max(difference(there, our_maps(again, image())).values()) < 1e-4


def test_keras_archives_are_read_with_a_checked_size(keras, saved, tmp_path):
    for model in (saved.model, build(keras, named=False)):
        model.save(tmp_path / "net.keras")
        backbone = load_backbone(tmp_path / "net.keras")
        shares = difference(saved.maps, our_maps(backbone, image()))  # both have the same numbers
        assert max(shares.values()) < 1e-4, shares
    members = {}
    with zipfile.ZipFile(tmp_path / "net.keras") as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}

    def archive_of(**changes):
        with zipfile.ZipFile(tmp_path / "x.keras", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in (members | changes).items():
                archive.writestr(name, content)
        return tmp_path / "x.keras"

    assert load_backbone(archive_of()).model.config == "D"  # packed again, as people do
    bomb = members["model.weights.h5"] + bytes(20 << 20)
    with pytest.raises(WeightsError, match=r"x\.keras: model\.weights\.h5: expected at most \d+ bytes, found \d+;"):
        load_backbone(archive_of(**{"model.weights.h5": bomb}))
    other = members["config.json"].replace(b'"activation": "relu"', b'"activation": "elu"')
    with pytest.raises(WeightsError, match=r"x\.keras: .*'Conv2D' with activation 'elu'"):
        load_backbone(archive_of(**{"config.json": other}))
    with pytest.raises(WeightsError, match=r"x\.keras: expected a file of Keras, found one that can't be read"):
        load_backbone(archive_of(**{"config.json": b"[" * 100_000}))


@pytest.mark.parametrize(
    ("layer", "change", "message"),
    [
        ("fc1", lambda w, b: [w[:-1], b], r"fc6\.weight: expected shape"),
        ("fc2", lambda w, b: [w, b[:-1]], r"fc7\.bias: expected shape"),
        ("fc2", lambda w, b: [w.astype("int32"), b], "fc2_W_1:0: expected <f4"),
        ("block4_conv1", lambda w, b: [np.where(w == w.max(), np.nan, w), b], r"conv4_1\.weight: expected finite num"),
        ("block1_conv1", lambda w, b: [w.transpose(3, 2, 0, 1), b], "Theano's order"),
        ("block3_conv3", lambda w, b: [w[:1, :1], b], "expected the layers of a net of the VGG paper"),
        ("block3_conv2", lambda w, b: [], "expected the layers of a net of the VGG paper"),
        ("block3_conv2", lambda w, b: [w], "expected a kernel and a bias, found 1"),
    ],
)
def test_other_shapes_and_numbers_are_refused(saved, tmp_path, layer, change, message):
    path = rewrite(saved, tmp_path / "x.h5", **{layer: change(*saved.arrays[layer])})
    with pytest.raises(WeightsError, match=rf"x\.h5: .*{message}"):
        load_backbone(path)


def test_a_file_with_nan_in_fc2_serves_up_to_fc6(saved, tmp_path):
    weights, bias = saved.arrays["fc2"]
    backbone = load_backbone(rewrite(saved, tmp_path / "x.h5", fc2=[weights, np.full_like(bias, np.inf)]))
    assert (backbone.model.last, backbone.imported["not_finite"]) == ("fc6", "fc7.bias")


def test_layers_that_weights_do_not_show_are_refused(keras, saved, tmp_path):
    layers = keras.layers
    start = layers.Input((224, 224, 3))
    keras.Model(start, saved.model(layers.Rescaling(1 / 255)(start))).save(tmp_path / "x.h5")
    with pytest.raises(WeightsError, match=r"x\.h5: .*found one of kind 'Rescaling'"):
        load_backbone(tmp_path / "x.h5")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("channels_last", "channels_first", "expected channels_last, found channels_first"),
        ('"activation": "relu"', '"activation": "elu"', "with ReLU .* found a 'Conv2D' with activation 'elu'"),
        ('"padding": "valid"', '"padding": "same"', "found a 'MaxPooling2D' with .* padding 'same'"),
    ],
)
def test_layers_that_are_set_otherwise_are_refused(saved, tmp_path, old, new, message):
    with h5py.File(saved.folder / "whole.h5") as source, h5py.File(tmp_path / "y.h5", "w") as target:
        source.copy("model_weights", target)
        target.attrs["model_config"] = source.attrs["model_config"].replace(old, new)
    with pytest.raises(WeightsError, match=rf"y\.h5: .*{message}"):
        load_backbone(tmp_path / "y.h5")


def test_no_layers_and_two_of_a_name_are_refused(saved, tmp_path):
    path = rewrite(saved, tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        file.copy("fc2", file.create_group("other"))
    with pytest.raises(WeightsError, match=r"x\.h5: expected the layers of one VGG net of Keras, found .*fc2, fc2,"):
        load_backbone(path)
    with h5py.File(path, "w") as file:
        file.create_group("nothing")
    with pytest.raises(WeightsError, match="of one VGG net of Keras, found none"):
        load_backbone(path)


def external(group, name, shape, folder):
    group.create_dataset(name, shape, "f4", external=[(str(folder / "secret.bin"), 0, h5py.h5f.UNLIMITED)])


def virtual(group, name, shape, folder):
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource(str(folder / "secret.h5"), "data", shape)
    group.create_virtual_dataset(name, layout)


def fill_value(group, name, shape, folder):
    group.create_dataset(name, shape, "f4", fillvalue=0.5)


def compressed(group, name, shape, folder):
    group.create_dataset(name, data=np.zeros(shape, "f4"), compression="gzip")


@pytest.mark.parametrize("make", [external, virtual, fill_value, compressed])
def test_data_that_lie_elsewhere_or_nowhere_are_refused(saved, tmp_path, make):
    shape = saved.arrays["fc2"][0].shape
    (tmp_path / "secret.bin").write_bytes(bytes(4 * shape[0] * shape[1]))
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = np.zeros(shape, "f4")
    path = rewrite(saved, tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        del file["fc2/fc2_W_1:0"]
        make(file["fc2"], "fc2_W_1:0", shape, tmp_path)
    with pytest.raises(WeightsError, match=r"x\.h5: fc2_W_1:0: expected"):
        load_backbone(path)


@pytest.mark.parametrize("link", [h5py.SoftLink("/fc2"), h5py.ExternalLink("other.h5", "/"), "circle"])
def test_links_and_circles_are_refused(saved, tmp_path, link):
    path = rewrite(saved, tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        file["fc2/again"] = file["/fc2"] if link == "circle" else link
    with pytest.raises(WeightsError, match=r"x\.h5: .*(Link to elsewhere|a circle)"):
        load_backbone(path)


def test_any_flipped_byte_is_an_error_of_ours_or_still_loads(saved, tmp_path):
    whole = (saved.folder / "keras_2.h5").read_bytes()
    messages = set()
    for position in range(0, 9000, 193):
        (tmp_path / "x.h5").write_bytes(whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :])
        try:
            load_here(tmp_path / "x.h5")
        except WeightsError as error:
            messages.add(str(error))
    assert len(messages) > 3
    assert all(f"{tmp_path}{os.sep}x.h5: " in message for message in messages)
