"""Where a command may write: the rule, case by case. `tests/cli/test_outputs.py` holds every command to it."""

import os

import pytest

from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime import output_paths
from vggfeat.runtime.output_paths import CLAIM, check_folder, check_target, claim, unclaim

RESULTS = ("results.json", "table.txt", "model-*.safetensors")
OURS = ("vggfeat-results",)


def test_a_new_file_is_fine_and_its_folder_need_not_exist(tmp_path):
    assert check_target(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_a_file_is_replaced_if_it_is_ours_or_if_that_is_asked_for(tmp_path):
    path = tmp_path / "a"
    path.write_text("mine")
    with pytest.raises(StoreError, match=rf"^{path}: expected a new file, found one there; choose another --out$"):
        check_target(path)
    with pytest.raises(StoreError, match="a page or no file, found another file; give --overwrite, or choose"):
        check_target(path, overwrite=False, ours=lambda _: False, called="a page")
    assert check_target(path, overwrite=True) == path
    assert check_target(path, ours=lambda real: real.read_text() == "mine") == path


def test_what_a_link_leads_to_is_checked_and_returned(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    assert check_target(link) == real
    real.write_text("mine")
    with pytest.raises(StoreError, match=rf"{link} \(which is {real}\): expected a new file"):
        check_target(link)
    real.unlink()
    real.symlink_to(link)
    with pytest.raises(StoreError, match="found a link that leads in a circle"):
        check_target(link, overwrite=True)


def test_an_input_is_never_replaced_nor_a_file_in_a_folder_of_inputs(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.write_text("only copy")
    folder.mkdir()
    (folder / "list.txt").write_text("list")
    (folder / "again").hardlink_to(source)
    for path in (source, folder / "again"):
        with pytest.raises(ConfigError, match="expected another file than the inputs"):
            check_target(path, inputs=["no such file", source], overwrite=True)
    with pytest.raises(ConfigError, match="expected no file of the inputs"):
        check_target(folder / "list.txt", inputs=[folder], overwrite=True)
    assert check_target(folder / "new.txt", inputs=[folder]) == folder / "new.txt"
    assert check_target(folder / "list.txt", inputs=[folder], ours=lambda _: True) == folder / "list.txt"


@pytest.mark.parametrize(("length", "fits"), [(180, True), (181, False), (5000, False)])
def test_a_name_that_leaves_no_room_for_those_made_from_it_is_refused_before_the_work(tmp_path, length, fits):
    if fits:
        check_target(tmp_path / ("x" * length))
    else:
        for check in (check_target, lambda path: check_folder(path, (), kinds=())):
            with pytest.raises(StoreError, match=r"expected a name of at most 180 bytes, .*choose a shorter --out"):
                check(tmp_path / ("x" * length))


def test_results_do_not_go_into_the_folder_of_the_inputs(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    for out in ("images", "link"):
        with pytest.raises(ConfigError, match="--out: expected another folder than the inputs"):
            check_folder(tmp_path / out, ("table.txt",), kinds=("vggfeat-x",), inputs=[tmp_path / "images"])
    check_folder(tmp_path / "images" / "new", ("table.txt",), kinds=("vggfeat-x",), inputs=[tmp_path / "images"])


def test_a_folder_is_ours_by_its_results_or_its_claim(tmp_path):
    (tmp_path / "table.txt").write_text("mine")
    (tmp_path / "notes.txt").write_text("not in the way")

    def check(kinds=OURS, **more):
        return check_folder(tmp_path, RESULTS, kinds=kinds, **more)

    with pytest.raises(StoreError, match=r"table\.txt: expected a new file"):
        check()
    assert check(overwrite=True) == tmp_path
    (tmp_path / "results.json").write_text('{\n  "format": "vggfeat-results",\n "version": 1}')
    assert check() == tmp_path
    with pytest.raises(StoreError, match=r"results\.json: expected a new file"):
        check(kinds=("vggfeat-boxes",))
    (tmp_path / "results.json").unlink()
    claim(tmp_path, OURS)
    assert check() == tmp_path
    unclaim(tmp_path, RESULTS, OURS)
    assert (tmp_path / CLAIM).exists(), "table.txt would not be known as ours"
    (tmp_path / "table.txt").unlink()
    unclaim(tmp_path, RESULTS, OURS)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_link_in_a_folder_of_results_is_refused(tmp_path):
    (tmp_path / "model-1.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"model-1\.safetensors: expected a file of vggfeat, found a link; move it"):
        check_folder(tmp_path, RESULTS, kinds=OURS, overwrite=True)


def test_a_file_that_cannot_be_read_now_is_not_taken_for_another(tmp_path):
    def unreadable(path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "page.html").write_text("ours")
    with pytest.raises(StoreError, match=r"page\.html: reading failed: Permission denied; nothing was changed; fix it"):
        check_target(tmp_path / "page.html", ours=unreadable)


def test_results_that_cannot_be_read_now_are_not_taken_for_anothers(tmp_path, monkeypatch):
    def unreadable(path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "results.json").write_text('{"format": "vggfeat-results"}')
    claim(tmp_path, OURS)
    monkeypatch.setattr(output_paths, "open_bounded", unreadable)
    unclaim(tmp_path, RESULTS, OURS)
    assert (tmp_path / CLAIM).exists(), "nobody could tell that it is not needed"
    with pytest.raises(StoreError, match=r"\.json: reading failed: Permission denied; nothing was changed"):
        check_folder(tmp_path, RESULTS, kinds=OURS, overwrite=True)
