"""Small valid files of weights in every format, and ways to damage them."""

import io
import itertools
import json
import struct
import zipfile
import zlib

import h5py
import numpy as np
import torch
from safetensors.torch import save as save_safetensors

from caffe_files import caffemodel, layers_of, nested, varint
from mat_files import save, simplenn
from other_nets import FC, state_dict_of
from vggfeat.nets.families import initialise
from vggfeat.nets.vgg import VGG
from vggfeat.weights import save_weights

WIDTH = 1 / 64
INTEGERS = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
TEXTS = ("", "a", "..", "/", "/etc/passwd", "\0", "é", "x" * 300, "conv1_1", "fc6", "-1", "1e999", "NaN", "F8_E4M3")


def net(seed, config="A"):
    model = VGG(config, 4, width=WIDTH)
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def caffe(seed, folder):
    for form, how in (("V1", {}), ("V2", {}), ("V1", {"dense": True}), ("V2", {"lrn": True})):
        yield caffemodel(layers_of("A", width=1, fc=64, classes=4, seed=seed, **how), form=form)
    yield caffemodel(
        [("data", "Data", {"mean_value": [1.0, 2.0, 3.0]}, []), *layers_of("A", width=1, fc=64, seed=seed)]
    )


def matconvnet(seed, folder):
    layers = layers_of("A", width=1, fc=64, classes=4, dense=True, seed=seed)
    for old in (False, True):
        for compressed in (False, True):
            save(folder / "x.mat", simplenn(layers, old=old, classes=list("abcd")), compressed=compressed)
            yield (folder / "x.mat").read_bytes()
    save(folder / "x.mat", {"net": simplenn(layers, mean=np.ones((8, 8, 3)))})
    yield (folder / "x.mat").read_bytes()


def keras(seed, folder):
    for form in ("{layer}/{layer}_{old}_1:0", "model_weights/{layer}/{layer}/{new}:0", "layers/{layer}/vars/{index}"):
        file = io.BytesIO()
        with h5py.File(file, "w") as target:
            target.attrs["layer_names"] = [name.encode() for name in keras_arrays(seed)]
            for layer, arrays in keras_arrays(seed).items():
                for index, array in enumerate(arrays):
                    old, new = ("W", "kernel") if index == 0 else ("b", "bias")
                    target[form.format(layer=layer, old=old, new=new, index=index)] = array
            if form.startswith("model"):
                layers = [{"class_name": "Conv2D", "config": {"data_format": "channels_last"}}]
                target.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": {"layers": layers}})
        yield file.getvalue()


def keras_arrays(seed):
    names = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}
    for ours, layer in net(seed, "D").layers.items():
        name = names.get(ours) or f"block{ours[4]}_conv{ours[6]}"
        kernel = layer.weight.detach().numpy().transpose(2, 3, 1, 0)
        kernel = kernel.reshape(-1, kernel.shape[3]) if name in names.values() else kernel
        names[name] = [np.ascontiguousarray(kernel), layer.bias.detach().numpy()]
    return {name: value for name, value in names.items() if isinstance(value, list)}


def torchvision(seed, folder):
    for fc, modern in itertools.product((FC, ("classifier.1", "classifier.4", "classifier.6")), (True, False)):
        file = io.BytesIO()
        torch.save(state_dict_of(net(seed), fc), file, _use_new_zipfile_serialization=modern)
        yield file.getvalue()


def timm(seed, folder):
    for fc in (("pre_logits.fc1", "pre_logits.fc2", "head.fc"), FC):
        tensors = {key: tensor.clone().contiguous() for key, tensor in state_dict_of(net(seed), fc).items()}
        yield save_safetensors(tensors)
        half = {key: tensor.half() for key, tensor in tensors.items()}
        yield save_safetensors(half, metadata={"format": "pt"})


def safetensors(seed, folder):
    for dtype in ("float32", "float16"):
        save_weights(folder / "x.safetensors", net(seed), mean=[1, 2, 3], classes=list("abcd"), dtype=dtype)
        yield (folder / "x.safetensors").read_bytes()


SAMPLES = {f.__name__: f for f in (caffe, matconvnet, keras, torchvision, timm, safetensors)}


class Corpus:
    """The samples of a format, and where in them the structure is: what does not change with the weights."""

    def __init__(self, name, folder):
        self.name = name
        self.samples, *others = (list(SAMPLES[name](seed, folder)) for seed in range(3))
        self.structure = []
        for content, *same in zip(self.samples, *others, strict=True):
            alike = np.ones(len(content), bool)
            for other in same:
                size = min(len(content), len(other))
                alike[:size] &= np.frombuffer(content, np.uint8, size) == np.frombuffer(other, np.uint8, size)
            self.structure.append(np.flatnonzero(alike))

    def case(self, rng):
        """Damage a sample: its fields, by what the format makes of them, or its bytes, or both."""
        number = rng.randrange(len(self.samples))
        content = self.samples[number]
        aware = AWARE.get(self.name)
        if aware and rng.random() < 0.5:
            try:
                content = aware(rng, content)
            except Exception:  # the sample may not have what the edit is after
                content = self.samples[number]
            if rng.random() < 0.7:
                return content
        spots = self.structure[number]
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            content = damage(rng, content, spots, rng.choice(self.samples))
        return content


def damage(rng, content, spots, other):
    """Change bytes, mostly those at `spots`, without knowing what they mean."""
    spot = int(rng.choice(spots)) if len(spots) and rng.random() < 0.8 else rng.randrange(len(content) + 1)
    at, length = min(spot, len(content)), rng.choice((1, 2, 4, 8, 16, 64, 1000))
    data, kind = bytearray(content), rng.randrange(9)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = rng.randrange(256)
    elif kind == 2:
        size = rng.choice((1, 2, 4, 8))
        data[at : at + size] = (rng.choice(INTEGERS) % 256**size).to_bytes(size, rng.choice(("little", "big")))
    elif kind == 3:  # a length a little off
        size = rng.choice((1, 2, 4, 8))
        value = int.from_bytes(data[at : at + size], "little") + rng.choice((-8, -4, -1, 1, 4, 8, len(data)))
        data[at : at + size] = (value % 256**size).to_bytes(size, "little")
    elif kind == 4:
        del data[at : at + length]
    elif kind == 5:
        data[at:at] = data[at : at + length] * rng.choice((1, 1, 2, 50))
    elif kind == 6:
        data[at:at] = rng.randbytes(length)
    elif kind == 7:
        del data[at if rng.random() < 0.5 else rng.randrange(len(data) + 1) :]
    else:
        start = rng.randrange(len(other))
        data[at : at + length] = other[start : start + length]
    return bytes(data)


def edit_text(rng, text):
    at = rng.randrange(len(text) + 1)
    return rng.choice((text[:at], text[:at] + rng.choice(TEXTS) + text[at:], rng.choice(TEXTS)))


def edit_fields(rng, content):
    """Caffe: rewrite fields, with all the lengths around them right."""

    def parse(data):
        at, found = 0, []
        while at < len(data):
            (tag, at), value = read_varint(data, at), None
            if tag & 7 == 0:
                value, at = read_varint(data, at)
            else:
                size = {1: 8, 5: 4}.get(tag & 7)
                if size is None:
                    size, at = read_varint(data, at)
                value, at = data[at : at + size], at + size
            found.append([tag, value])
        return found

    def build(fields):
        sizes = {0: varint, 1: bytes, 5: bytes}
        return b"".join(
            varint(tag) + sizes[tag & 7](value) if tag & 7 in sizes else nested(tag >> 3, value)
            for tag, value in fields
        )

    def edit(data, depth):
        fields = parse(data)
        index = rng.randrange(len(fields))
        tag, value = fields[index]
        if depth and tag & 7 == 2 and len(value) > 2 and (tag >> 3 in (2, 6, 7, 100) or rng.random() < 0.3):
            fields[index][1] = edit(value, depth - 1)
        else:
            change_field(rng, fields, index)
        return build(fields)

    return edit(content, 3)


def change_field(rng, fields, index):
    tag, value = fields[index]
    kind = rng.randrange(6)
    if kind == 0:
        del fields[index]
    elif kind == 1:
        fields[index:index] = [fields[index]] * rng.choice((1, 1, 3, 2000))
    elif kind == 2:
        other = rng.randrange(len(fields))
        fields[index], fields[other] = fields[other], fields[index]
    elif kind == 3:
        fields[index] = [tag & ~7, rng.choice(INTEGERS)]
    elif kind == 4:
        fields[index] = [rng.randrange(1, 130) << 3 | (tag & 7), value]
    elif isinstance(value, bytes):
        length = rng.choice((0, 1, 4, 100, len(value) - 1, len(value) + 4))
        fields[index][1] = (value * 2 + bytes(8))[:length] if tag & 7 == 2 else rng.randbytes(len(value))


def read_varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


def edit_arrays(rng, content):
    """MATLAB: damage what an array holds, and compress it again, or make it far longer than it says."""
    at, elements = 128, []
    while at < len(content):
        kind, length = struct.unpack_from("<II", content, at)
        elements.append((kind, content[at + 8 : at + 8 + length]))
        at += 8 + length
    index = rng.randrange(len(elements))
    kind, inner = elements[index]
    inner = zlib.decompress(inner) if kind == 15 else struct.pack("<II", kind, len(inner)) + inner
    spots = np.flatnonzero(np.frombuffer(inner, np.uint8) < 32)  # tags, sides and lengths, more than numbers
    for _ in range(rng.choice((1, 2, 5))):
        inner = damage(rng, inner, spots, inner)
    if rng.random() < 0.05:
        inner += bytes(20 << 20)
    elements[index] = (15, zlib.compress(inner))
    return content[:128] + b"".join(struct.pack("<II", kind, len(data)) + data for kind, data in elements)


def edit_zip(rng, content):
    """PyTorch: damage a member, and write the archive again, so that its checksums are right."""
    if not content.startswith(b"PK"):
        return content
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as archive:
        names = source.namelist()
        chosen = rng.choice((rng.choice(names), next(name for name in names if name.endswith("data.pkl"))))
        for name in names:
            data = source.read(name)
            if name == chosen:
                data = damage(rng, data, (), data)
                name = edit_text(rng, name).replace("\0", "") or "x" if rng.random() < 0.1 else name
            squeezed = zipfile.ZIP_DEFLATED if rng.random() < 0.02 else zipfile.ZIP_STORED
            if rng.random() > 0.005:
                archive.writestr(name, data, squeezed)
    return target.getvalue()


def edit_header(rng, content):
    """safetensors: rewrite the JSON before the tensors, with its length right."""
    length = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 2, 4))):
        edit_json(rng, about)
    header = json.dumps(about).encode()
    if rng.random() < 0.2:
        header = damage(rng, header, (), header)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def edit_json(rng, value):
    while True:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if not isinstance(value[key], (dict, list)) or not value[key] or rng.random() < 0.1:
            break
        value = value[key]
    old, kind = value[key], rng.randrange(5)
    if kind == 0:
        del value[key]
    elif isinstance(old, str) and old.startswith("{") and kind < 4:
        inner = json.loads(old)
        edit_json(rng, inner)
        value[key] = json.dumps(inner)
    elif kind == 1:
        value[key] = rng.choice((None, True, -1, 0.5, 1e308, [], {}, "x", [1] * 300, *INTEGERS))
    elif isinstance(old, str):
        value[key] = edit_text(rng, old)
    elif isinstance(old, int):
        value[key] = rng.choice((old + 1, old - 1, old * 2, -old, rng.choice(INTEGERS)))
    elif isinstance(value, dict):
        value[edit_text(rng, key)] = old


def edit_hdf5(rng, content):
    """Keras: other arrays, links and attributes, written by h5py."""
    file = io.BytesIO(content)
    with h5py.File(file, "r+") as target:
        paths = []
        target.visit(paths.append)
        for _ in range(rng.choice((1, 1, 2, 4))):
            path = rng.choice(paths)
            if path in target:
                edit_node(rng, target, path, rng.choice(paths))
    return file.getvalue()


def edit_node(rng, file, path, other):
    node, kind = file[path], rng.randrange(9)
    shape = node.shape if isinstance(node, h5py.Dataset) else (2, 2)
    if kind < 8:
        del file[path]
    if kind == 1:
        shape = list(shape)
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, 5, 2**20, 2**40))
        file.create_dataset(path, shape, "f4", chunks=(1,) * len(shape) if np.prod(shape, dtype=float) > 1e6 else None)
    elif kind == 2:
        file[path] = np.zeros(shape, rng.choice(("f2", "f8", "i4", "c8", "S3", ">f4", "?")))
    elif kind == 3:
        file[path] = h5py.SoftLink(f"/{other}")
    elif kind == 4:
        file[path] = h5py.ExternalLink("/etc/passwd", "/x")
    elif kind == 5 and other in file:
        file[path] = file[other]
    elif kind == 6:
        file[path] = rng.choice((1.0, "text", np.zeros(3, [("a", "f4")]), h5py.Empty("f4")))
    elif kind == 7:
        file.create_dataset(path, (64, 64), "f4", chunks=(64, 64), compression="gzip", fillvalue=rng.random())
    elif kind == 8:
        node = rng.choice((node, file))
        name = rng.choice(("name", "layer_names", "weight_names", "model_config", "keras_version"))
        node.attrs[name] = rng.choice(
            (1, "x", "[" * 2000, "{}", '{"config": {"layers": [1]}}', b"\xff", [b"a"], "null")
        )


AWARE = {"caffe": edit_fields, "matconvnet": edit_arrays, "keras": edit_hdf5, "torchvision": edit_zip}
AWARE |= {"timm": edit_header, "safetensors": edit_header}
