"""The bench runs, compares with what is installed, and its table says what was measured."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from essence_kd.cli.main import main
from essence_kd.distill.bench import Bench, interleaved, loss_works, synthetic_logits, table


def test_every_part_runs_and_is_reported(tmp_path, capsys):
    small = ["--pdfs", "300", "--frames", "64", "--top-k", "5", "--threads", "1", "--repeats", "2"]
    small += ["--tmp", str(tmp_path)]
    assert main(["bench", *small, "--only", "select,fuse,codec,loss", "--json", f"{tmp_path}/b.json"]) == 0
    shown = capsys.readouterr().out
    for part in ("300 pdfs, k = 5, 64 frames, 1 threads", "torch.topk", "numpy.argpartition",
                 "torch: softmax, mean, topk", "write a Posterior archive", "torch, dense soft targets",
                 "extra bytes per logit"):
        assert part in shown
    results = json.loads((tmp_path / "b.json").read_text())["results"]
    assert all(row["speed"] > 0 for row in results)
    assert {row["name"] for row in results if row["section"].startswith("select")} == {
        "essence", "torch.topk", "numpy.argpartition", "reading the matrix (torch.sum)"}


def test_the_whole_process(tmp_path):
    bench = Bench(frames=32, pdfs=50, k=3, threads=1, repeats=1, archive_frames=96, folder=str(tmp_path))
    rows = bench.run(["process"])
    names = [row["name"] for row in rows]
    assert names[:3] == ["essence", "essence, threshold 0.01", "essence, random pruning 0.01"]
    assert not list(tmp_path.iterdir())


def test_mistakes(capsys):
    assert main(["bench", "--pdfs", "10", "--top-k", "11", "--frames", "8"]) == 1
    for option in ("--repeats", "--frames"):
        assert main(["bench", "--pdfs", "10", "--top-k", "3", option, "0"]) == 1
    assert "--top-k 11: must be from 1 to the 10 pdfs" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "--only", "everything"])
    assert "everything is none of select" in capsys.readouterr().err


def test_turns_are_interleaved_and_the_first_is_not_kept():
    order = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4 and [len(times) for times in seconds.values()] == [3, 3]


def test_the_data_is_like_posteriors():
    one, two = synthetic_logits(200, 2000, 2)
    p, q = (torch.softmax(torch.from_numpy(z), 1).numpy() for z in (one, two))
    assert 0.4 < p.max(axis=1).mean() < 0.8
    assert 0.3 < (p.argmax(axis=1) == q.argmax(axis=1)).mean() < 0.95


def test_the_losses_that_are_compared_are_one():
    soft, both, dense, hard = (work() for work in loss_works(8, 40, 3).values())
    torch.testing.assert_close(soft, dense)
    torch.testing.assert_close(both, 0.1 * hard + 0.9 * soft)


def test_the_table_is_markdown():
    rows = [{"section": "s", "name": "essence", "speed": 1234.5, "unit": "frames/s", "ours_is_faster_by": None},
            {"section": "s", "name": "x", "speed": 100.0, "unit": "frames/s", "ours_is_faster_by": np.float64(12.34)}]
    assert table(rows).splitlines() == ["**s**", "", "| | speed | ours is faster by |", "|---|---|---|",
                                        "| essence | 1,234 frames/s |  |", "| x | 100 frames/s | 12.3 x |"]
