"""MatConvNet's SimpleNN files for tests, saved by SciPy, and their forward pass, by SciPy too."""

import numpy as np
from scipy.io import savemat
from scipy.signal import correlate

MEAN = np.array([123.68, 116.779, 103.939])
MEAN_PIXEL = MEAN.reshape(1, 1, 3)


def cell(values):
    """A row of a MATLAB cell."""
    array = np.empty((1, len(values)), object)
    array[0] = values
    return array


def hwio(layers):
    """Turn the arrays of `layers_of(dense=True)` into MatConvNet's layout."""
    return [(name, kind, settings, [a.transpose(2, 3, 1, 0) if a.ndim == 4 else a for a in arrays])
            for name, kind, settings, arrays in layers]  # fmt: skip


def simplenn(layers, *, old=False, ceil=True, mean=MEAN_PIXEL, classes=(), dtype=np.float32):
    """The variables of a file: layers and meta, or before 1.0-beta17 layers, normalization and classes."""
    structs = [struct_of(*layer, old=old, ceil=ceil, dtype=dtype) for layer in hwio(layers) if layer[1] != "Dropout"]
    meta = {"normalization": {"imageSize": [224.0, 224.0, 3.0], "averageImage": mean, "keepAspect": True}}
    if classes:
        meta["classes"] = {"name": cell(list(classes)), "description": cell([f"a {name}" for name in classes])}
    return {"layers": cell(structs)} | (meta if old else {"meta": meta})


def struct_of(name, kind, settings, arrays, *, old, ceil, dtype):
    if kind == "Convolution":
        weights, biases = (array.astype(dtype) for array in arrays)
        biases = biases[None, :] if old else biases[:, None]
        pair = {"filters": weights, "biases": biases} if old else {"weights": cell([weights, biases])}
        pad = settings.get("pad", 0)
        return {"type": "conv", "name": name, **pair, "stride": 1.0, "pad": [float(pad)] * 4 if pad else 0.0}
    if kind == "Pooling":
        pad = [0.0, 1.0, 0.0, 1.0] if ceil else 0.0
        return {"type": "pool", "name": name, "pool": [2.0, 2.0], "stride": 2.0, "pad": pad, "method": "max"}
    if kind == "LRN":
        return {"type": "normalize", "name": name, "param": [5.0, settings["k"], settings["alpha"] / 5, 0.75]}
    return {"type": {"ReLU": "relu", "Softmax": "softmax"}.get(kind, kind), "name": name}


def save(path, variables, *, compressed=True):
    savemat(path, variables, do_compression=compressed, oned_as="row")


def forward(layers, image, *, ceil=True, mean=MEAN):
    """Run a net of `layers_of(dense=True)` on RGB pixels (H, W, 3) with MatConvNet's padding.

    Returns {name of the layer: (height, width, channels)}.
    """
    x, maps = image - mean, {}
    for name, kind, settings, arrays in hwio(layers):
        if kind == "Convolution":
            x = convolve(x, *(a.astype(np.float64) for a in arrays), settings.get("pad", 0))
        elif kind == "ReLU":
            x = np.maximum(x, 0)
        elif kind == "LRN":
            x = normalise(x, settings["alpha"] / 5, settings["k"])
        elif kind == "Pooling":
            x = pool(x, bottom=int(ceil), right=int(ceil))
        maps[name] = x
    return maps


def convolve(x, weights, biases, pad):
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    # "valid" over height, width and channels alike; vl_nnconv correlates, it doesn't flip.
    planes = [correlate(x, weights[..., out], mode="valid")[..., 0] for out in range(weights.shape[3])]
    return np.stack(planes, axis=2) + biases


def pool(x, *, bottom, right):
    # vl_nnpool: floor((H + top + bottom - 2) / 2) + 1 windows; what is padded is never the maximum.
    x = np.pad(x, ((0, bottom), (0, right), (0, 0)), constant_values=-np.inf)
    height, width = (x.shape[0] - 2) // 2 + 1, (x.shape[1] - 2) // 2 + 1
    x = x[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
    return x.max(axis=(1, 3))


def normalise(x, alpha, k):
    # vl_nnnormalize: x / (kappa + alpha * sum over 5 channels of x^2) ^ beta.
    padded = np.pad(x**2, ((0, 0), (0, 0), (2, 2)))
    total = sum(padded[..., shift : shift + x.shape[2]] for shift in range(5))
    return x / (k + alpha * total) ** 0.75
