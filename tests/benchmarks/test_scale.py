"""What a run of any size costs outside the net: the stages really happen, and their numbers are of them."""

import json

import pytest

from vggfeat.benchmarks import scale
from vggfeat.benchmarks.scale import measure_scale
from vggfeat.cli import run
from vggfeat.errors import ConfigError


def test_the_stages_of_a_run_are_measured(tmp_path, capsys, monkeypatch):
    # One stage in a process of its own shows what all do; each would load PyTorch for seconds.
    apart = scale._apart
    monkeypatch.setattr(
        scale, "_apart", lambda stage, *given: (apart if stage == "restart" else scale._stage)(stage, *given)
    )
    words = ["--images", "20000", "--shard-rows", "1000", "--channels", "16", "--scratch", str(tmp_path)]
    assert run(["bench", "scale", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["shards"] == 20
    assert found["plan"]["rows_per_second"] == pytest.approx(20000 / found["plan"]["seconds"], rel=0.01)
    assert found["work"]["rows"] == 10000  # every other shard
    assert found["restart"]["pending"] == 0
    assert all(found[stage]["seconds"] > 0 and found[stage]["peak_mib"] > 50 for stage in ("plan", "work", "restart"))
    assert list(tmp_path.iterdir()) == []


def test_no_rows_are_refused():
    with pytest.raises(ConfigError, match="expected at least 1, found 0"):
        measure_scale(0, 10)
