from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vggfeat.synthetic.drawing import generator
from vggfeat.synthetic.figures import System, blob, body_patch, figure, random_body, random_system, varied
from vggfeat.synthetic.formulas import KINDS, formula_image, look


def rng_of(words):
    return generator(0, "test", words)


# --- fractals


def sierpinski():
    """Three maps that halve the distance to a corner each: their figure is the triangle without its middle."""
    corners = np.array([[0, 0], [1, 0], [0.5, 1]], dtype=np.float32)
    return System(np.broadcast_to(np.eye(2, dtype=np.float32) / 2, (3, 2, 2)), corners / 2, 0.0)


def test_three_halving_maps_draw_the_sierpinski_triangle():
    cover, hue = figure(sierpinski(), rng_of("sierpinski"), 96, 96, 0.0)
    assert cover.shape == hue.shape == (96, 96)
    assert cover.min() == 0
    assert cover.max() == 1
    rows, columns = np.nonzero(cover)
    left, right, top, bottom = columns.min(), columns.max(), rows.min(), rows.max()
    x, y = (columns - left) / (right - left), (rows - top) / (bottom - top)
    # The middle triangle has its corners in the middles of the sides; a pixel's width is left at its edges.
    middle = (y < 0.46) & (np.abs(x - 0.5) < y / 2 - 0.03)
    assert not middle.any()
    assert (cover[rows, columns][y > 0.95] > 0).any(), "the corner that y points to"
    # Each third of the figure was reached by its own map last.
    assert hue[rows, columns][(y < 0.4) & (x < 0.4)].max() < hue[rows, columns][y > 0.6].min()


def test_a_turned_figure_is_as_large_as_fits():
    for angle in (0.0, 1.0, 2.5):
        cover, _ = figure(random_system(rng_of("turned")), rng_of("walk"), 80, 80, angle)
        rows, columns = np.nonzero(cover)
        assert 70 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 80


def test_every_system_draws_a_figure_that_is_neither_a_dot_nor_everything():
    for number in range(40):
        rng = rng_of(f"system {number}")
        system = random_system(rng)
        assert np.linalg.norm(system.linear, ord=2, axis=(1, 2)).max() < 1, "each map brings points together"
        cover, hue = figure(varied(system, rng, 0.04), rng, 64, 64, 0.3)
        assert 0.01 < (cover > 0).mean() < 0.95
        assert hue.min() >= 0
        assert hue.max() <= 1


# --- bodies


def test_a_blob_is_a_curve_around_the_origin():
    points = blob(rng_of("blob"), 3, 0.2)
    angles = np.unwrap(np.arctan2(points[:, 1], points[:, 0]))
    assert (np.diff(angles) > 0).all()
    assert np.hypot(*points.T).min() >= 0.199


def test_a_body_is_drawn_whole_in_its_colours():
    palette = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], dtype=np.float32)
    for number in range(12):
        rng = rng_of(f"body {number}")
        body = random_body(rng)
        assert max(np.hypot(part.x, part.y) + part.size for part in body.parts) == pytest.approx(1)
        colours, cover = body_patch(body, rng, palette, 40, 0.2)
        assert colours.shape == (*cover.shape, 3)
        assert cover.min() >= 0
        assert cover.max() == 1
        assert cover.any(axis=0).all(), "the patch ends where the body does"
        assert cover.any(axis=1).all()


# --- classes


def test_the_kinds_take_turns_and_a_class_depends_on_its_number_alone():
    looks = [look(number) for number in range(8)]
    assert [one.kind for one in looks] == 2 * list(KINDS)
    assert len({one.name for one in looks}) == 8
    again = look(5)
    assert (again.palette == looks[5].palette).all()
    assert again.name == looks[5].name == "surface-0005"


@pytest.mark.parametrize("kind", ["surface", "leaves", "body"])
def test_images_of_a_class_are_nearer_to_one_another_than_to_those_of_others(kind):
    """By mean and deviation of colours alone; chance is one in four."""
    looks = [look(list(KINDS).index(kind) + len(KINDS) * k) for k in range(4)]
    found = np.array([[_colours(one, f"{one.name} {k}") for k in range(12)] for one in looks])  # (classes, images, 6)
    assert share_of_nearest_in_class(found) > 0.4


def test_states_of_a_fractal_are_nearer_to_one_another_than_to_other_fractals():
    found = []
    for number in range(4):
        system = random_system(rng_of(f"fractal {number}"))
        walks = [rng_of(f"walk {number} {k}") for k in range(8)]
        covers = [figure(varied(system, rng, 0.04), rng, 64, 64, 0.0)[0] for rng in walks]
        found.append([cover.reshape(8, 8, 8, 8).mean(axis=(1, 3)).ravel() for cover in covers])
    assert share_of_nearest_in_class(np.array(found)) > 0.8


def share_of_nearest_in_class(found):
    """Share of images, (classes, images, values), whose nearest neighbour is of their own class."""
    hits = []
    for row, of_class in enumerate(found):
        for k, mine in enumerate(of_class):
            distance = np.abs(found - mine).sum(axis=2)
            distance[row, k] = np.inf
            hits.append(np.unravel_index(distance.argmin(), distance.shape)[0] == row)
    return np.mean(hits)


def _colours(one, words):
    pixels = np.asarray(formula_image(one, 64, rng_of(words)).image, dtype=float)
    middle = pixels[16:48, 16:48].reshape(-1, 3)
    return [*middle.mean(axis=0), *middle.std(axis=0)]


def test_the_folders_are_a_training_set_with_its_validation(tree):
    root = tree("formulas")
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["train", "val"]
    names = sorted(look(number).name for number in range(8))
    for part, count in (("train", 6), ("val", 2)):
        assert Counter(path.parent.name for path in (root / part).rglob("*.jpg")) == dict.fromkeys(names, count)
    with Image.open(root / "train" / "fractal-0000" / "0001.jpg") as image:
        assert (image.size, image.mode) == ((96, 96), "RGB")
