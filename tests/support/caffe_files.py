"""Caffe models for tests: prototxt and the bytes of a .caffemodel, written by hand after caffe.proto."""

import struct

import numpy as np

BLOCKS = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3),) * 5,
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
V1_TYPES = {"Convolution": 4, "InnerProduct": 14, "LRN": 15, "Pooling": 17, "ReLU": 18, "Dropout": 6, "Softmax": 20}
V1_TYPES |= {"Data": 5}


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field, value):
    return varint(field << 3) + varint(value)


def single(field, value):
    return varint(field << 3 | 5) + struct.pack("<f", value)


def nested(field, content):
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def blob(array, *, form, double=False, packed=True):
    """BlobProto: legacy num, channels, height, width in V1; shape in V2."""
    if form == "V1":
        dims = (1,) * (4 - array.ndim) + array.shape
        out = b"".join(number(field, side) for field, side in enumerate(dims, start=1))
    else:
        out = nested(7, nested(1, b"".join(map(varint, array.shape))))
    field, kind, numbers = (8, 1, array.astype("<f8")) if double else (5, 5, array.astype("<f4"))
    if packed:
        return out + nested(field, numbers.tobytes())
    return out + b"".join(varint(field << 3 | kind) + value.tobytes() for value in numbers.ravel())


def layers_of(config, *, width=64, fc=4096, classes=1000, dense=False, lrn=False, seed=0, inputs=3):
    """(name, type, settings, arrays) of each layer; dense: fc6 to fc8 as convolutions."""
    rng = np.random.default_rng(seed)

    def arrays(*shape):
        fan_in = np.prod(shape[1:])
        weights = rng.standard_normal(shape) * np.sqrt(2 / fan_in)
        return [weights.astype(np.float32), (rng.standard_normal(shape[0]) / 10).astype(np.float32)]

    layers, channels = [], inputs
    for block, kernels in enumerate(BLOCKS[config], start=1):
        out = min(width * 2 ** (block - 1), width * 8)
        for index, kernel in enumerate(kernels, start=1):
            settings = {"num_output": out, "kernel_size": kernel, "pad": kernel // 2}
            layers += [(f"conv{block}_{index}", "Convolution", settings, arrays(out, channels, kernel, kernel))]
            layers += [(f"relu{block}_{index}", "ReLU", {}, [])]
            channels = out
            if lrn and block == index == 1:
                layers += [("norm1", "LRN", {"local_size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0}, [])]
        layers += [(f"pool{block}", "Pooling", {"pool": 0, "kernel_size": 2, "stride": 2}, [])]
    for name, out, side in (("fc6", fc, 7), ("fc7", fc, 1), ("fc8", classes, 1)):
        weights, biases = arrays(out, channels, side, side)
        if dense:
            layers += [(name, "Convolution", {"num_output": out, "kernel_size": side}, [weights, biases])]
        else:
            layers += [(name, "InnerProduct", {"num_output": out}, [weights.reshape(out, -1), biases])]
        if name != "fc8":
            layers += [(f"relu{name[2]}", "ReLU", {}, []), (f"drop{name[2]}", "Dropout", {}, [])]
        channels = out
    return [*layers, ("prob", "Softmax", {}, [])]


SETTINGS = {
    "Convolution": (
        "convolution_param",
        10,
        106,
        {"num_output": 1, "pad": 3, "kernel_size": 4, "group": 5, "stride": 6},
    ),
    "InnerProduct": ("inner_product_param", 17, 117, {"num_output": 1, "axis": 5, "transpose": 6}),
    "Pooling": ("pooling_param", 19, 121, {"pool": 1, "kernel_size": 2, "stride": 3, "pad": 4, "round_mode": 13}),
    "LRN": ("lrn_param", 18, 118, {"local_size": 1, "alpha": 2, "beta": 3, "k": 5}),
    "ReLU": ("relu_param", 30, 123, {"negative_slope": 1}),
    "Data": ("transform_param", 36, 100, {"scale": 1, "mean_file": 4, "mean_value": 5}),
}
SETTINGS["Convolution"][3].update({"dilation": 18, "pad_h": 9, "pad_w": 10, "kernel_h": 11, "kernel_w": 12})
SETTINGS["Pooling"][3].update({"kernel_h": 5, "kernel_w": 6, "stride_h": 7, "stride_w": 8})


def caffemodel(layers, *, form="V2", double=False, packed=True, name="VGG"):
    out = nested(1, name)
    for layer, kind, settings, arrays in layers:
        out += nested(2 if form == "V1" else 100, layer_message(layer, kind, settings, arrays, form, double, packed))
    return out


def layer_message(name, kind, settings, arrays, form, double, packed):
    numbers = (4, 5, 6) if form == "V1" else (1, 2, 7)
    out = nested(numbers[0], name)
    out += number(5, V1_TYPES.get(kind, 99)) if form == "V1" else nested(2, kind)
    out += b"".join(nested(numbers[2], blob(a, form=form, double=double, packed=packed)) for a in arrays)
    if settings:
        _, old, new, fields = SETTINGS[kind]
        out += nested(old if form == "V1" else new, b"".join(value(fields[k], v) for k, v in settings.items()))
    return out


def value(field, content):
    if isinstance(content, list):
        return b"".join(value(field, part) for part in content)
    if isinstance(content, str):
        return nested(field, content)
    return single(field, content) if isinstance(content, float) else number(field, content)


def prototxt(layers, height, width):
    """The net for OpenCV, always in the newer form, with every layer on its own blob."""
    out = f'name: "VGG"\ninput: "data"\ninput_shape {{ dim: 1 dim: 3 dim: {height} dim: {width} }}\n'
    bottom = "data"
    for name, kind, settings, _ in layers:
        inside = " ".join(f"{k}: {('MAX' if k == 'pool' else v)}" for k, v in settings.items())
        param = f" {SETTINGS[kind][0]} {{ {inside} }}" if settings else ""
        out += f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{name}"{param} }}\n'
        bottom = name
    return out
