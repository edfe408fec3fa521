"""The data side of training: draws, crops, colours, batches, and statistics of the images."""

import errno
import math
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from box_runs import listed
from decoding_hooks import obey
from odd_images import encode
from vggfeat.errors import StoreError, TrainingError
from vggfeat.images.decode import DecodeSettings, Request, decode
from vggfeat.images.pool import Decoder
from vggfeat.nets.transforms import rescaled_size
from vggfeat.runtime.distributed import World, share
from vggfeat.runtime.durable import Files
from vggfeat.samples import Box, LabelledImages
from vggfeat.training import statistics
from vggfeat.training.crops import Crops, EpochOrder, centred, colour_axes, draw, group_crops, place_crops, resample
from vggfeat.training.data import NO_TARGET, Prefetch, training_batches, validation_batches
from vggfeat.training.recipe import Recipe
from vggfeat.training.statistics import PixelStatistics, StatisticsSettings, pixel_statistics, save_statistics, say_lost

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
JITTER = Recipe(scale=(256, 512))


def drawn(count, recipe=JITTER, epoch=0):
    return draw(recipe, np.full(count, epoch), np.arange(count))


# Draws


def test_draws_are_uniform_over_all_that_is_allowed():
    n = 200_000
    found = drawn(n)
    counts = np.bincount(found.scale - 256)
    assert len(counts) == 257
    assert abs(counts - n / 257).max() < 6 * math.sqrt(n / 257)
    for part in found.place.T:
        assert part.min() >= 0
        assert part.max() < 1
        assert abs(np.histogram(part, 50, (0, 1))[0] - n / 50).max() < 6 * math.sqrt(n / 50)
    assert found.mirrored.mean() == pytest.approx(0.5, abs=0.006)
    together = [found.scale, *found.place.T, found.mirrored, *found.alphas.T]
    assert np.corrcoef(together) == pytest.approx(np.eye(7), abs=5 / math.sqrt(n))


def test_colour_factors_are_normal_with_a_deviation_of_a_tenth():
    n = 200_000
    alphas = drawn(n).alphas
    assert alphas.mean(axis=0) == pytest.approx(0, abs=0.1 * 5 / math.sqrt(n))
    assert np.cov(alphas.T) == pytest.approx(0.01 * np.eye(3), abs=0.01 * 8 / math.sqrt(n))
    # A normal variable is within 1, 2 and 3 deviations in 68.27, 95.45 and 99.73 % of cases.
    for deviations, part in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert (abs(alphas) < 0.1 * deviations).mean() == pytest.approx(part, abs=0.003)


def test_what_is_drawn_for_an_image_depends_on_seed_epoch_and_row_alone():
    rows = np.array([5, 1_281_166, 0])
    recipe = replace(JITTER, seed=3)
    together = draw(recipe, np.array([7, 0, 7]), rows)
    for n, epoch in enumerate((7, 0, 7)):
        alone = draw(recipe, np.array([epoch]), rows[n : n + 1])
        assert all((one == part[n : n + 1]).all() for one, part in zip(alone, together, strict=True))
    others = [drawn(50, replace(JITTER, seed=1)), drawn(50, epoch=1), drawn(50)]
    assert len({tuple(one.place[:, 0]) for one in others}) == 3


def test_the_numbers_are_those_of_splitmix64():
    # Steele, Lea and Flood 2014; these two are the published first outputs for the seed 1234567.
    def words(seed):
        mask, state = (1 << 64) - 1, seed
        while True:
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            yield z ^ (z >> 31)

    known = words(1234567)
    assert [next(known), next(known)] == [6457827717110365317, 3203168211198807973]
    mixed = 0
    for part in (9, 2, 4, 11, 1):
        mixed = next(words((mixed + part) % (1 << 64)))
    assert draw(replace(JITTER, seed=9), np.array([4]), np.array([11])).place[0, 0] == (mixed >> 11) / 2**53


def test_every_epoch_is_another_permutation_and_none_is_cut_short():
    order = EpochOrder(10, seed=1)
    epochs, rows = order.take(0, 40)
    assert epochs.tolist() == [epoch for epoch in range(4) for _ in range(10)]
    permutations = [tuple(rows[start : start + 10]) for start in range(0, 40, 10)]
    assert len(set(permutations)) == 4
    assert all(sorted(one) == list(range(10)) for one in permutations)
    assert EpochOrder(10, seed=1).take(7, 23)[1].tolist() == rows[7:23].tolist()
    assert EpochOrder(10, seed=2).take(0, 10)[1].tolist() != rows[:10].tolist()


@pytest.mark.parametrize(("count", "world"), [(256, 4), (7, 3), (2, 5)])
def test_the_shares_of_all_processes_are_the_whole(count, world):
    parts = [range(count)[share(count, rank, world)] for rank in range(world)]
    assert [n for part in parts for n in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# Crops


def by_hand(image, crops, row):
    """Rescale the whole image, then crop, then mirror."""
    size = tuple(crops.rescaled[row].tolist())
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    whole = F.interpolate(pixels, size, mode="bilinear", antialias=True)[0]
    top, left = crops.offset[row].tolist()
    crop = whole[:, top : top + crops.side, left : left + crops.side]
    assert crop.shape == (3, crops.side, crops.side)
    return crop.flip(-1) if crops.mirrored[row] else crop


SIZES = [
    (375, 500), (500, 375), (333, 501), (256, 341), (224, 224), (100, 37), (1, 20), (701, 700), (1100, 900), (3, 90),
]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_crops_equal_those_of_the_whole_rescaled_image(device):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    seen = set()
    for epoch in range(2):
        crops = place_crops(drawn(len(SIZES), epoch=epoch), np.array(SIZES), 224)
        expected = [by_hand(image, crops, row) for row, image in enumerate(images)]
        for one in (group for most in (1, 1 << 20) for group in group_crops(images, crops, most=most)):
            found = resample(one.to(device))
            assert found.is_contiguous(memory_format=torch.channels_last)
            for row, crop in zip(one.rows.tolist(), found.cpu(), strict=True):
                # A thousandth of one of 255 steps.
                assert (crop - expected[row]).abs().max() < 1e-3
                seen.add((row, bool(crops.mirrored[row])))
    assert {row for row, _ in seen} == set(range(len(SIZES)))
    assert {flag for _, flag in seen} == {False, True}


def test_the_corners_of_the_rescaled_image_can_be_reached_and_not_passed():
    size = np.array([(300, 400)])
    spare = np.array(rescaled_size(300, 400, 256)) - 224
    for place in (0.0, np.nextafter(1, 0)):
        draws = centred(256, 1)._replace(place=np.full((1, 2), place))
        assert place_crops(draws, size, 224).offset.tolist() == [(spare * (place > 0)).tolist()]
    rows = drawn(60_000, Recipe())
    offsets = place_crops(rows, np.full((60_000, 2), 256), 224).offset
    counts = np.bincount(offsets[:, 0], minlength=33)
    assert abs(counts - 60_000 / 33).max() < 6 * math.sqrt(60_000 / 33)


def test_a_centre_crop_lies_in_the_centre():
    crops = place_crops(centred(256, 2), np.array([(256, 256), (512, 1025)]), 224)
    assert crops.rescaled.tolist() == [[256, 256], [256, 513]]
    assert crops.offset.tolist() == [[16, 16], [16, 144]]
    assert not crops.mirrored.any()


def test_values_of_an_image_do_not_depend_on_its_group():
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    crops = place_crops(drawn(len(SIZES)), np.array(SIZES), 224)
    found = [{}, {}]
    for kept, most in zip(found, (1, 1 << 30), strict=True):
        groups = group_crops(images, crops, most=most)
        assert len(groups) == (len(SIZES) if most == 1 else 1)
        for one in groups:
            kept.update(zip(one.rows.tolist(), resample(one), strict=True))
    assert all(torch.equal(found[0][row], found[1][row]) for row in range(len(SIZES)))


def test_groups_stay_below_the_memory_that_is_allowed_and_take_only_what_is_needed():
    sizes = np.array([(4000, 6000), *[(375, 500)] * 20])
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    groups = group_crops(images, place_crops(centred(512, 21), sizes, 224), most=1 << 20)
    assert sorted(row for one in groups for row in one.rows.tolist()) == list(range(21))
    assert all(one.pixels.numel() <= 1 << 20 or len(one.rows) == 1 for one in groups)
    # 224 of 512 pixels of a side of 375 are 164, and a few around them.
    assert min(one.pixels.shape[1] for one in groups) in range(164, 172)


def test_colour_axes_are_eigenvectors_times_eigenvalues_of_values_from_0_to_1():
    # The constants that implementations of Krizhevsky's shift share, for RGB from 0 to 1.
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    axes = colour_axes(vectors @ np.diag(values) @ vectors.T * 255**2)
    assert abs(axes) == pytest.approx(abs(255 * vectors * values), rel=2e-3, abs=0.02)
    assert (axes.sum(axis=0) >= 0).all()
    # A deviation of a tenth along the first is 5.5 steps of 255.
    assert 0.1 * np.linalg.norm(axes[:, 0]) == pytest.approx(5.55, abs=0.01)


# Decoding at reduced size, and out of larger files


def test_a_jpeg_is_decoded_at_a_reduced_size_that_is_no_smaller_than_asked(tmp_path):
    smooth = np.asarray(Image.radial_gradient("L").resize((1001, 800)).convert("RGB"))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(encode(Image.fromarray(smooth), "JPEG", quality=95))
    (tmp_path / "b.jpg").write_bytes(encode(Image.fromarray(smooth), "JPEG", exif=exif))
    for side, factor in ((None, 1), (401, 1), (400, 2), (201, 2), (200, 4), (100, 8), (10, 8 * 3)):
        image = decode(Request(str(tmp_path / "a.jpg"), (None,), side=side), DecodeSettings())
        assert image.size == (800, 1001)
        assert image.regions[0].shape[:2] == (-(-800 // factor), -(-1001 // factor))
        turned = decode(Request(str(tmp_path / "b.jpg"), (None,), side=side), DecodeSettings())
        assert (turned.size, turned.regions[0].shape[0]) == ((1001, 800), -(-1001 // factor))
    half = decode(Request(str(tmp_path / "a.jpg"), (None,), side=400), DecodeSettings()).regions[0]
    assert abs(half.astype(int) - np.asarray(Image.fromarray(smooth).reduce(2))).mean() < 1


def test_a_box_is_never_taken_from_a_reduced_jpeg(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode(Image.new("RGB", (900, 800)), "JPEG"))
    request = Request(str(tmp_path / "a.jpg"), (Box(810, 720, 830, 750),), side=100)
    assert decode(request, DecodeSettings()).regions[0].shape == (30, 20, 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_may_be_a_part_of_a_file(tmp_path, workers):
    file = tmp_path / "many"
    parts = [encode(Image.new("RGB", (9, 7), (shade, 0, 0)), "PNG") for shade in (10, 200)]
    file.write_bytes(b"head" + b"".join(parts))
    first = 4 + len(parts[0])
    spans = [(4, len(parts[0])), (first, len(parts[1])), (first, len(parts[1]) + 1), (0, 9), (0, 0)]
    with Decoder(workers, DecodeSettings()) as decoder:
        one, two, *bad = decoder.stream(Request(str(file), (None,), span) for span in spans)
    assert (one.regions[0][0, 0, 0], two.regions[0][0, 0, 0]) == (10, 200)
    assert [error.reason for error in bad] == ["truncated", "unrecognised", "empty"]
    assert str(bad[1]).startswith(f"{file}, bytes 0 to 8: expected an image")


# Batches


def save_images(root, count=40, bad=()):
    rng = np.random.default_rng(2)
    root.mkdir(exist_ok=True)
    paths = []
    for n in range(count):
        paths.append(f"{n}.{'jpg' if n % 3 else 'png'}")
        size = (30 + n % 7, 40 + n % 5) if n % 4 else (90, 70)
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
        (root / paths[-1]).write_bytes(b"no" if n in bad else encode(image, "JPEG" if n % 3 else "PNG"))
    targets = np.arange(count) % 5
    return LabelledImages(root=root, paths=tuple(paths), targets=targets, classes=tuple("abcde"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("images") / "a")


SMALL = Recipe(scale=(28, 40), crop=24, seed=4, batch=12)
MEAN = np.array([120.0, 110.0, 100.0])
AXES = np.diag([300.0, 20.0, 5.0])


def batches(images, decoder, recipe=SMALL, **options):
    return training_batches(images, recipe, mean=MEAN, colours=AXES, decoder=decoder, **options)


def first(count, images, workers=0, **options):
    with Decoder(workers, DecodeSettings()) as decoder, batches(images, decoder, **options) as stream:
        return [next(stream) for _ in range(count)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_is_what_the_recipe_says(images, device):
    # Over the end of the first epoch: 40 images are 3 batches and a third.
    for step, batch in enumerate(first(5, images, world=World(device=torch.device(device)))):
        epochs, rows = EpochOrder(40, 4).take(step * 12, step * 12 + 12)
        draws = draw(SMALL, epochs, rows)
        assert (batch.step, batch.targets.tolist()) == (step, (rows % 5).tolist())
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for n, row in enumerate(rows):
            request = Request(str(images.root / images.paths[row]), (None,), None, int(draws.scale[n]))
            pixels = decode(request, DecodeSettings()).regions[0]
            assert min(pixels.shape[:2]) >= min(draws.scale[n], 30)
            crops = place_crops(draws.part(np.array([n])), np.array([pixels.shape[:2]]), 24)
            shift = AXES @ draws.alphas[n] - MEAN
            expected = by_hand(pixels, crops, 0) + torch.from_numpy(shift)[:, None, None]
            assert (batch.images[n].cpu() - expected).abs().max() < 1e-3


def test_batches_are_the_same_for_any_number_of_workers_and_from_any_start(images):
    plain = first(6, images)
    for other in (first(6, images, workers=2), first(6, images, workers=1, depth=1)):
        for one, two in zip(plain, other, strict=True):
            assert torch.equal(one.images, two.images)
            assert torch.equal(one.targets, two.targets)
    assert torch.equal(first(1, images, first_step=5)[0].images, plain[5].images)
    assert not torch.equal(first(1, images, recipe=replace(SMALL, seed=5))[0].images, plain[0].images)


@pytest.mark.parametrize("world", [2, 5])
def test_the_shares_of_all_processes_are_the_batch(images, world):
    whole = first(4, images)
    shares = [first(4, images, world=World(rank=rank, size=world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([one[step].images for one in shares]), batch.images)
        assert torch.equal(torch.cat([one[step].targets for one in shares]), batch.targets)


def test_a_process_without_a_share_gets_empty_batches(images):
    found = first(3, images, recipe=replace(SMALL, batch=2), world=World(size=4))
    assert [tuple(batch.images.shape) for batch in found] == [(0, 3, 24, 24)] * 3


def test_validation_takes_centre_crops_of_every_image_once(images):
    with Decoder(0, DecodeSettings()) as decoder:
        found = []
        for rank in range(3):
            recipe, world = Recipe(scale=(32, 32), crop=24, batch=18), World(rank=rank, size=3)
            with validation_batches(images, recipe, mean=MEAN, decoder=decoder, world=world) as stream:
                part = list(stream)
                assert len(part) == 3
                assert next(stream, None) is None
            found += part
    tensors = torch.cat([batch.images for batch in found])
    assert torch.cat([batch.targets for batch in found]).tolist() == images.targets.tolist()
    for row in range(len(images)):
        request = Request(images.place(row).file, (None,), None, 32)
        pixels = decode(request, DecodeSettings()).regions[0]
        size = rescaled_size(*pixels.shape[:2], 32)
        corner = np.array([[(size[0] - 24) // 2, (size[1] - 24) // 2]])
        crops = Crops(np.array([pixels.shape[:2]]), np.array([size]), corner, np.array([False]), 24)
        expected = by_hand(pixels, crops, 0) - torch.from_numpy(MEAN)[:, None, None]
        assert (tensors[row] - expected).abs().max() < 1e-3


def test_unreadable_images_drop_out_and_are_named_once(tmp_path):
    images = save_images(tmp_path, bad=(3, 30))
    with Decoder(0, DecodeSettings()) as decoder, batches(images, decoder) as stream:
        for _ in range(10):
            batch = next(stream)
            rows = EpochOrder(40, 4).take(batch.step * 12, batch.step * 12 + 12)[1]
            lost = np.isin(rows, (3, 30))
            assert (batch.targets == NO_TARGET).tolist() == lost.tolist()
            assert (batch.images.abs().amax((1, 2, 3)) == 0).tolist() == lost.tolist()
        assert [path for path, _ in stream.unreadable] == ["3.png", "30.png"]
        assert all(reason.startswith("unrecognised: ") for _, reason in stream.unreadable)
        # What is ahead has been seen as well.
        assert stream.unread in range(6, 9)


def test_too_many_unreadable_images_stop_the_run_but_ten_never_do(tmp_path):
    images = save_images(tmp_path, bad=(3,))
    taken = []
    with (
        Decoder(0, DecodeSettings()) as decoder,
        batches(images, decoder, replace(SMALL, batch=40)) as stream,
        pytest.raises(TrainingError, match=r"at most 1% .* found 11 of 440, the first is 3.png \(unrecognised: "),
    ):
        taken.extend(stream)
    assert [batch.step for batch in taken] == list(range(10))


def test_classes_that_are_lost_are_named_where_too_many_images_are(tmp_path):
    images = save_images(tmp_path, bad=range(12))
    targets = np.array([0] * 6 + [1] * 5 + [2] * 29)
    images = replace(images, targets=targets, classes=("cat", "dog", "fox", "owl"))  # Of owls there has never been one.
    lost = r"found 12 of 40, .*; no image that can be read is left of cat, dog; mend or remove them"
    with (
        Decoder(0, DecodeSettings()) as decoder,
        batches(images, decoder, replace(SMALL, batch=40)) as stream,
        pytest.raises(TrainingError, match=lost),
    ):
        next(stream)
    assert say_lost([f"c{k}" for k in range(12)]).endswith("c9 and 2 more")


def test_a_stream_can_be_given_up_at_any_time(images):
    threads = threading.active_count()
    with Decoder(2, DecodeSettings()) as decoder:
        for taken in (0, 1, 3):
            with batches(images, decoder) as stream:
                for _ in range(taken):
                    next(stream)
            assert next(stream, None) is None
            stream.close()
        kept = batches(images, decoder)
        next(kept)
    with pytest.raises(RuntimeError, match="closed"):
        list(kept)
    kept.close()
    assert threading.active_count() == threads


def test_the_seconds_that_were_waited_are_those_of_slow_decoding(images):
    slow = listed(Path("sleep/0.1"), list("0123"))
    with (
        Decoder(1, DecodeSettings(), decode=obey) as decoder,
        batches(slow, decoder, replace(SMALL, batch=4)) as stream,
    ):
        next(stream)
        assert 0.2 < next(stream).waited < 2
        time.sleep(1.2)
        assert next(stream).waited < 0.1


def test_work_ahead_stops_at_its_depth_and_passes_errors_on():
    made = []

    def work():
        for n in range(10):
            made.append(n)
            yield n
        raise LookupError("no more")

    prefetch = Prefetch(work(), 2)
    time.sleep(0.1)
    assert made == [0, 1, 2]
    taken = []
    with pytest.raises(LookupError, match="no more"):
        taken.extend(prefetch)
    assert taken == list(range(10))
    prefetch.close()
    assert next(prefetch, None) is None


# Statistics


def test_mean_and_covariance_are_those_of_numpy_with_images_of_equal_weight(tmp_path):
    rng = np.random.default_rng(3)
    sizes = [(20, 30), (40, 50), (7, 9)]
    arrays = [rng.integers(0, 256, (*size, 3), np.uint8) // (1 + n) for n, size in enumerate(sizes)]
    for n, array in enumerate(arrays):
        (tmp_path / f"{n}.png").write_bytes(encode(Image.fromarray(array), "PNG"))
    (tmp_path / "3.png").write_bytes(b"")
    images, seen = listed(tmp_path, [f"{n}.png" for n in range(4)]), []
    with Decoder(0, DecodeSettings()) as decoder:
        found = pixel_statistics(
            images, decoder, cache=tmp_path / "cache", progress=lambda done, total: seen.append((done, total))
        )
    values = np.concatenate([array.reshape(-1, 3) for array in arrays]).astype(float)
    weights = np.concatenate([np.full(h * w, 1 / (h * w)) for h, w in sizes])
    assert found.mean == pytest.approx(np.average(values, axis=0, weights=weights))
    assert found.covariance == pytest.approx(np.cov(values.T, aweights=weights, bias=True))
    assert (found.images, seen) == (3, [(1, 4), (2, 4), (3, 4), (4, 4)])


def test_statistics_are_kept_for_the_list_and_the_settings(images, tmp_path, monkeypatch):
    with Decoder(0, DecodeSettings()) as decoder:

        def measure(**settings):
            return pixel_statistics(images, decoder, StatisticsSettings(**settings), cache=tmp_path / "cache")

        once = measure()
        (kept,) = (tmp_path / "cache").iterdir()
        sampled = measure(most=7)
        assert (sampled.images, once.images) == (7, 40)
        assert len(list((tmp_path / "cache").iterdir())) == 2
        other = PixelStatistics(np.array([1.0, 2.0, 3.0]), np.eye(3), 40)
        save_statistics(kept, other)
        assert measure().mean.tolist() == [1, 2, 3]
        flipped = kept.read_text().replace("2.0", "3.0")
        for damage in ("", "{}", "[]", '{"mean": [1, 2], "covariance": 3, "images": 1}', flipped):
            kept.write_text(damage)
            again = measure()
            assert again.mean.tolist() == once.mean.tolist()
            assert again.covariance.tolist() == once.covariance.tolist()


def test_statistics_that_can_not_be_read_now_are_not_measured_again(images, tmp_path, monkeypatch):
    with Decoder(0, DecodeSettings()) as decoder:
        pixel_statistics(images, decoder, cache=tmp_path)
        (kept,) = tmp_path.iterdir()
        before = kept.read_bytes()

        def refuse(path):
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", refuse)
            with pytest.raises(StoreError, match="reading the pixel statistics failed: Input/output error"):
                pixel_statistics(images, decoder, cache=tmp_path)
        assert kept.read_bytes() == before


def test_a_run_that_ends_while_statistics_are_written_leaves_no_half_file(images, tmp_path, monkeypatch):
    class Broken(Files):
        def sync(self, fd):
            raise KeyboardInterrupt

    monkeypatch.setattr(statistics, "DISK", Broken())
    with Decoder(0, DecodeSettings()) as decoder:
        with pytest.raises(KeyboardInterrupt):
            pixel_statistics(images, decoder, cache=tmp_path)
        assert list(tmp_path.iterdir()) == []
        monkeypatch.undo()
        pixel_statistics(images, decoder, cache=tmp_path)
        (kept,) = tmp_path.iterdir()
        # What kill -9 would leave.
        kept.rename(f"{kept}.tmp")
        pixel_statistics(images, decoder, cache=tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


def test_no_image_that_can_be_read_is_an_error(tmp_path):
    images = save_images(tmp_path, count=2, bad=(0, 1))
    with Decoder(0, DecodeSettings()) as decoder, pytest.raises(TrainingError, match="found none that can be read"):
        pixel_statistics(images, decoder, cache=tmp_path)
