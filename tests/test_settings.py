"""Settings and arguments of the wrong kind: refused in one line that says which, or taken for what they mean."""

import dataclasses
import importlib
import pkgutil
from types import NoneType
from typing import get_args

import numpy as np
import pytest

import vggfeat
from vggfeat.audit import audit_table
from vggfeat.descriptors import join_features
from vggfeat.errors import ConfigError, VggfeatError
from vggfeat.extract import RunSettings
from vggfeat.forward.settings import ForwardSettings
from vggfeat.metrics import average_precision, mean_class_recall, top_k_error
from vggfeat.predict import nets_of, predict_images
from vggfeat.protocols.probes import ProbeSettings, run_probes
from vggfeat.svm import LinearOneVsRest, SvmProblemSet

NEEDED = {"LocaliseSettings": {"scales": ((256,),)}, "Settings": {"image_side": 64}, "Recipe": {"net": "A"}}


def settings_classes():
    for module in pkgutil.walk_packages(vggfeat.__path__, "vggfeat."):
        if module.name != "vggfeat.__main__":
            for name, found in vars(importlib.import_module(module.name)).items():
                own = dataclasses.is_dataclass(found) and getattr(found, "__module__", "") == module.name
                if own and (name.endswith("Settings") or name == "Recipe"):
                    yield found


WHOLE = [
    (found, field.name)
    for found in settings_classes()
    for field in dataclasses.fields(found)
    if field.type is int or (NoneType in get_args(field.type) and int in get_args(field.type))
]


@pytest.mark.parametrize(("made", "name"), WHOLE, ids=lambda one: getattr(one, "__name__", one))
def test_whole_numbers_are_neither_fractions_nor_truth_values(made, name):
    needed = NEEDED.get(made.__name__, {})
    for wrong in (64.5, True, np.True_, "64", np.nan):
        with pytest.raises(ConfigError, match=f"^{name}: expected a whole number, found"):
            made(**needed | {name: wrong})


def test_the_kind_has_members():
    assert {(RunSettings, "workers"), (vggfeat.ExtractionSettings, "batch_pixels")} <= set(WHOLE)
    assert len(WHOLE) > 40


@pytest.mark.parametrize("scales", [(True,), (256.5,), ("256",), "256", None, True])
def test_scales_are_whole_numbers(scales):
    with pytest.raises(ConfigError, match=r"^scales: expected a whole number, found"):
        ForwardSettings(scales=scales)


def test_numbers_of_numpy_and_single_values_are_taken_for_what_they_mean():
    assert ForwardSettings(scales=np.array([256, 384])).describe() == ForwardSettings(scales=[256, 384]).describe()
    assert type(RunSettings(workers=np.int64(1)).workers) is int
    assert vggfeat.ExtractionSettings(scales=256, regions="image") == vggfeat.ExtractionSettings(scales=(256,))
    assert ProbeSettings(probes="svm").probes == ("svm",)
    with pytest.raises(ConfigError, match=r"^regions: expected image, box or both, found \('whole',\)"):
        vggfeat.ExtractionSettings(regions="whole")


@pytest.mark.parametrize("k", [1.5, True, np.nan, 0, None])
def test_k_of_the_error_is_a_whole_number(k):
    with pytest.raises(ConfigError, match=r"^k: expected a whole number from 1, found"):
        top_k_error([0], [[1.0, 2.0]], k)


TABLE, SAVED = (
    "table: expected what vggfeat.read_descriptors makes",
    "saved: expected what vggfeat.protocols.open_model",
)
LISTED = "dataset: expected what vggfeat.open_dataset makes of a folder, found str; pass that object"


@pytest.mark.parametrize(("call", "said"), [
    (lambda: vggfeat.run_protocol("voc2007.h5"), TABLE),
    (lambda: audit_table("voc2007.h5"), TABLE),
    (lambda: run_probes("voc2007.h5"), TABLE),
    (lambda: nets_of("photos.svm"), SAVED),
    (lambda: predict_images("photos.svm", ["a.jpg"], []), SAVED),
    (lambda: vggfeat.given.read_given("a.npz", "photos"), LISTED),
    (lambda: vggfeat.extract_features("photos", "D", "o.h5", vggfeat.ExtractionSettings()), LISTED),
])  # fmt: skip
def test_a_path_in_the_place_of_what_it_holds_is_refused(call, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        call()


ROWS, HIDDEN = np.arange(12.0).reshape(6, 2), np.ma.masked_greater(np.arange(12.0).reshape(6, 2), 9)
SIGNS = np.where(np.arange(6)[:, None] < 3, 1, -1)
COLUMN = np.ma.masked_array(np.arange(6.0), np.arange(6) == 2)


@pytest.mark.parametrize("call", [
    lambda: average_precision(SIGNS[:, 0], COLUMN),
    lambda: mean_class_recall(np.zeros(6, int), np.ma.masked_array(np.zeros(6, int), np.arange(6) == 2), 1),
    lambda: top_k_error(np.zeros(6, int), HIDDEN, 1),
    lambda: SvmProblemSet(HIDDEN),
    lambda: SvmProblemSet(ROWS).fit(np.arange(6), SIGNS, 1.0, weights=COLUMN),
    lambda: SvmProblemSet(ROWS).fit(np.arange(6), np.ma.masked_array(SIGNS, SIGNS < 0), 1.0),
    lambda: LinearOneVsRest().fit(HIDDEN, SIGNS[:, 0]),
    lambda: LinearOneVsRest().fit(ROWS, SIGNS[:, 0]).predict(HIDDEN),
    lambda: join_features(np.ma.masked_array(np.ones((2, 1, 1, 3), np.float32), np.eye(2, 3)[:, None, None])),
    lambda: vggfeat.samples.DataSet(name="own", task="unlabelled", classes=("a", "b"), ids=tuple("uvwxyz"),
                                    paths=tuple("uvwxyz"), labels=np.ma.masked_equal(SIGNS.repeat(2, 1), 1)),
    lambda: next(iter(vggfeat.estimator.inputs.inputs([np.ma.masked_array(np.ones((8, 8, 3), np.uint8), True)],
                                                      None, None))),
])  # fmt: skip
def test_what_a_mask_hides_is_not_taken_for_a_value(call):
    with pytest.raises(VggfeatError, match=r"expected every value, found \d+ masked"):
        call()


def test_a_mask_that_hides_nothing_is_no_matter():
    assert average_precision(SIGNS[:, 0], np.ma.masked_array(np.arange(6.0), False)) == pytest.approx(0.5)
