"""VGG nets as other libraries define them, narrow, and their maps of an image next to ours."""

import torch
from torch import nn
from torchvision.models import vgg

from vggfeat.images.decode import DecodedImage
from vggfeat.nets.transforms import normalise
from vggfeat.weights import torchvision_names

NARROW = 16
FC = ("classifier.0", "classifier.3", "classifier.6")


def draw(net, seed=0):
    """Weights that keep the scale of activations, so that no map fades; biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            deviation = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.normal_(0, deviation, generator=generator)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.add_(1)
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return net.eval()


def torchvision_net(letter="D", *, batch_norm=False, dropout_first=False, ceil=False):
    layers = vgg.make_layers([c if c == "M" else c // NARROW for c in vgg.cfgs[letter]], batch_norm)
    with torch.device("meta"):  # its own classifier is wide
        net = vgg.VGG(layers, init_weights=False)
    fc = [nn.Linear(512 // NARROW * 49, 4096 // NARROW), nn.Linear(4096 // NARROW, 4096 // NARROW)]
    steps = [fc[0], nn.ReLU(), nn.Dropout(), fc[1], nn.ReLU(), nn.Dropout(), nn.Linear(4096 // NARROW, 10)]
    if dropout_first:
        steps = [nn.Dropout(), fc[0], nn.ReLU(), nn.Dropout(), fc[1], nn.ReLU(), steps[-1]]
    net.classifier = nn.Sequential(*steps)
    for module in net.features:
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = ceil
    return draw(net)


def state_dict_of(model, fc=FC):
    """Our weights under torchvision's names, or with other names for the fully connected layers."""
    found = {}
    for ours, theirs in torchvision_names(model.config).items():
        layer, _, kind = theirs.rpartition(".")
        layer = dict(zip(FC, fc, strict=True)).get(layer, layer)
        tensor = model.layers.state_dict()[ours]
        found[f"{layer}.{kind}"] = tensor.flatten(1) if layer.startswith("classifier") and tensor.ndim > 1 else tensor
    return found


@torch.inference_mode()
def torchvision_maps(net, x):
    """The five maps, those of the fully connected layers by sliding them over pool5, window by window."""
    conv5 = net.features[:-1](x)
    pool5 = net.features[-1](conv5)
    found, at = {"conv5": conv5, "pool5": pool5}, {"fc6": [], "fc7": [], "fc8": []}
    rows, columns = (side - 6 for side in pool5.shape[2:])
    for i in range(rows):
        for j in range(columns):
            y = pool5[:, :, i : i + 7, j : j + 7].flatten(1)
            for module in net.classifier:
                y = module(y)
                if isinstance(module, nn.ReLU):
                    at["fc7" if len(at["fc6"]) > len(at["fc7"]) else "fc6"].append(y)
            at["fc8"].append(y)
    return found | {name: torch.stack(ys, -1).unflatten(-1, (rows, columns)) for name, ys in at.items()}


def image(height=224, width=224, seed=1):
    """(3, height, width), uint8, RGB: noise over a different ramp in each channel, so that no axis can be swapped."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 128, (3, height, width), generator=generator)
    ramps = [torch.linspace(0, 127, width).expand(height, width), torch.linspace(120, 20, height)[:, None], 40]
    for channel, ramp in enumerate(ramps):
        noise[channel] += ramp.to(torch.int64) if isinstance(ramp, torch.Tensor) else ramp
    return noise.to(torch.uint8)


def decoded(*sizes):
    arrays = [image(*size, seed).permute(1, 2, 0).contiguous().numpy() for seed, size in enumerate(sizes)]
    return [DecodedImage((pixels,), pixels.shape[:2], bytes(32)) for pixels in arrays]


@torch.inference_mode()
def our_maps(backbone, pixels):
    x = normalise(pixels[None].float(), torch.tensor(backbone.mean), torch.tensor(backbone.std))
    return backbone.model(x, tuple(backbone.model.maps))


def difference(expected, found):
    """The largest difference of each map, as a share of its largest value."""
    assert set(expected) <= set(found)
    shares = {}
    for name, theirs in expected.items():
        theirs, ours = torch.as_tensor(theirs), found[name]
        assert theirs.shape == ours.shape, (name, theirs.shape, ours.shape)
        largest = theirs.abs().max().item()
        assert largest > 0.1
        assert theirs.std().item() > 0.01 * largest  # a map of constants would agree with anything
        shares[name] = (theirs - ours).abs().max().item() / largest
    return shares
