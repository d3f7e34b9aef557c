"""The bench of the training step runs, and what it compares are steps of training."""
import json

import pytest
from essence_kd.am.bench import BASE, StepBench, table
from essence_kd.am.settings import TrainSettings
from essence_kd.cli.main import main
from essence_kd.io.settings import load_settings

SMALL = ["arch=tdnn_lstm", "model.hidden=12", "model.cells=8", "data.chunk_frames=30", "data.left_context=9",
         "data.right_context=9"]


def test_steps_train_on_their_targets():
    bench = StepBench(load_settings(TrainSettings, None, SMALL), pdfs=30, k=30, feat_dim=8, chunks=3)
    assert bench.frames == 3 * 48 and len(bench.hard) == 3 * 10
    losses = {name: bench.step(*targets) for name, targets in bench.targets.items()}
    assert len(losses) == 3 and losses["essence, k = 30"] == pytest.approx(losses["all soft labels, dense"], rel=1e-2)
    before = bench.step(*bench.targets[BASE])
    for _ in range(20):
        after = bench.step(*bench.targets[BASE])
    assert after < before


def test_the_verb_prints_a_table(tmp_path, capsys):
    sets = [w for item in SMALL for w in ("--set", item)]
    words = ["bench-train", *sets, "--pdfs", "40", "--top-k", "4", "--feat-dim", "8", "--chunks", "2", "--repeats", "2",
             "--device", "cpu"]
    (tmp_path / "m.yaml").write_text("{}")
    assert main([*words, "--model", str(tmp_path / "m.yaml"), "--json", str(tmp_path / "b.json")]) == 0
    shown = capsys.readouterr().out
    assert "40 pdfs" in shown and "| essence, k = 4 |" in shown and "| 1.000 × |" in shown
    rows = json.loads((tmp_path / "b.json").read_text())["results"]
    assert [r["target_bytes"] for r in rows] == [0, 20 * 4 * 12, 20 * 40 * 4]
    assert table(rows) in shown
    assert main([*words, "--top-k", "41"]) == 1
    assert "from 1 to the 40 pdfs" in capsys.readouterr().err
    assert main([*words, "--repeats", "0"]) == 1
    assert "--repeats 0: must be at least 1" in capsys.readouterr().err
