"""Boxes against coordinates and windows computed by hand."""

import math

import numpy as np
import pytest
import torch

from vggfeat.localisation.boxes import (
    boxes_from_map,
    class_outputs,
    clip_to_image,
    decode,
    encode,
    overlaps,
    window_frames,
)

NAN = math.nan
WINDOW = torch.tensor([0.0, 0, 224, 224])


def test_coordinates_by_hand():
    # 112 wide around (112, 112), 56 high around (.., 84): centre, an eighth above it, half and a quarter of the side.
    box = torch.tensor([56.0, 56, 168, 112])
    assert encode(box, WINDOW).tolist() == [0, -0.125, 0.5, 0.25]
    # The same box in the window at row 1, column 2 of a dense map, 64 pixels further right and 32 further down.
    assert encode(box, WINDOW + torch.tensor([64.0, 32, 64, 32])).tolist() == pytest.approx(
        [-64 / 224, -0.125 - 32 / 224, 0.5, 0.25]
    )
    # A frame need not be square: each axis has its own unit.
    assert encode(box, torch.tensor([0.0, 0, 448, 224])).tolist() == [-0.25, -0.125, 0.25, 0.25]


def test_decode_is_the_inverse_of_encode():
    generator = torch.Generator().manual_seed(0)
    corners = 500 * torch.rand((50, 2, 2), generator=generator, dtype=torch.float64) - 100
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    frames = torch.tensor([[0.0, 0, 224, 224], [32, 64, 256, 288], [0, 0, 500, 333]], dtype=torch.float64)
    coordinates = encode(boxes[:, None], frames)
    assert coordinates.shape == (50, 3, 4)
    torch.testing.assert_close(decode(coordinates, frames), boxes[:, None].expand(50, 3, 4))


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        # Pixels 1 to 10 and 6 to 15 in both directions, inclusive: 25 common ones of 175.
        ((0, 0, 10, 10), (5, 5, 15, 15), 25 / 175),
        ((0, 0, 10, 10), (0, 0, 10, 5), 0.5),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0),
        ((0, 0, 10, 10), (4, 4, 4, 9), 0),
        ((0, 0, 10, 10), (8, 2, 3, 9), 0),
        ((8, 2, 3, 9), (8, 2, 3, 9), 0),
        ((0, 0, 10, 10), (NAN, NAN, NAN, NAN), 0),
    ],
)
def test_overlaps_by_hand(one, other, share):
    assert overlaps(torch.tensor(one).double(), torch.tensor(other).double()).item() == share


def test_a_class_has_four_channels_of_its_own_or_all_share_four():
    outputs = torch.arange(24.0).view(2, 12)
    assert class_outputs(outputs, torch.tensor([2, 0])).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert class_outputs(outputs[:, :4], torch.tensor([2, 0])).tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]


def test_windows_are_32_pixels_apart_and_224_wide():
    frames = window_frames((3, 4))
    assert frames.shape == (3, 4, 4)
    assert frames[0, 0].tolist() == [0, 0, 224, 224]
    assert frames[2, 3].tolist() == [96, 64, 320, 288]
    assert window_frames((1, 1), (7, 20)).tolist() == [[[20, 7, 244, 231]]]


def test_the_outputs_of_a_class_become_a_box_in_pixels_of_the_file():
    # Two classes at 1 x 2 positions; of the second: centre (0.25, -0.25), half the window wide, a quarter high.
    coordinates = torch.zeros(8, 1, 2)
    coordinates[4:] = torch.tensor([0.25, -0.25, 0.5, 0.25])[:, None, None]
    found = boxes_from_map(coordinates, np.array([1]), window_frames((1, 2)), (256, 256), (512, 512))
    # In the rescaled image: centre (112 + 56, 112 - 56), 112 x 56; the file is twice as large.
    np.testing.assert_allclose(found[0, 0], [2 * (168 - 56), 2 * (56 - 28), 2 * (168 + 56), 2 * (56 + 28)])
    np.testing.assert_allclose(found[0, 1], found[0, 0] + [64, 0, 64, 0])
    # The longer side is rounded, so that width and height have factors of their own.
    wide = boxes_from_map(coordinates, np.array([1]), window_frames((1, 2)), (256, 256), (512, 768))
    np.testing.assert_allclose(wide[0], found[0] * [1.5, 1, 1.5, 1])


def test_boxes_stay_within_the_image_and_keep_a_pixel():
    boxes = np.array([[-5.0, 2, 500, 9], [50, 50, 60, 60], [8, 3, 4, 3.2]])
    np.testing.assert_allclose(clip_to_image(boxes, (20, 30)), [[0, 2, 30, 9], [29, 19, 30, 20], [8, 3, 9, 4]])
