"""Statistics of archives against plain sums."""
from __future__ import annotations

import json

import numpy as np
import pytest
from builders import table

from essence_kd.cli.main import main
from essence_kd.distill.essence import EssenceSettings, select
from essence_kd.distill.stats import Statistics, bytes_per_frame, collect, forecast
from essence_kd.io import compact
from essence_kd.io.errors import UserError
from essence_kd.io.posterior import PosteriorWriter, encode_fixed
from essence_kd.io.tables import IntVectorWriter, MatrixWriter

PDFS = 40


@pytest.fixture
def data(tmp_path):
    """Posteriors (with ties), alignments three times as long, and their tables."""
    rng = np.random.default_rng(0)
    posts, alis = {}, {}
    for i, frames in enumerate((5, 1, 12)):
        p = np.exp(2 * rng.standard_normal((frames, PDFS)))
        p[0] = 1.0
        posts[f"u{i}"] = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
        alis[f"u{i}"] = rng.integers(0, PDFS, 3 * frames - i % 3).astype(np.int32)
    return posts, alis, table(MatrixWriter, tmp_path / "full", posts), table(IntVectorWriter, tmp_path / "ali", alis)


def test_dense_statistics_are_the_plain_ones(data):
    posts, alis, full, ali = data
    result = collect(full, alignments=ali, factor=3)
    p = np.concatenate(list(posts.values())).astype(np.float64)
    f = np.cumsum(-np.sort(-p, axis=1), axis=1)
    np.testing.assert_allclose(result["f_k"], f.mean(axis=0), rtol=1e-6)
    assert result["entropy_nats"] == pytest.approx(-(p * np.log(p)).sum(axis=1).mean(), rel=1e-5)
    for mass in (0.9, 0.95, 0.99):
        reach = result["k_for_mass"][f"{mass:g}"]
        needed = np.sort((f < mass - 1e-6).sum(axis=1) + 1)
        assert reach["mean"] == int((f.mean(axis=0) < mass - 1e-6).sum()) + 1
        assert reach["median"] == needed[(len(needed) - 1) // 2]
        assert reach["percentile_95"] == needed[int(np.ceil(0.95 * len(needed))) - 1]
    labels = np.concatenate([alis[u][::3] for u in posts])
    order = np.argsort(-p, axis=1, kind="stable")
    rank = np.array([list(row).index(label) for row, label in zip(order, labels)])
    ours = result["alignment"]
    assert ours["top1_agreement"] == pytest.approx((rank == 0).mean())
    assert ours["mean_probability"] == pytest.approx(p[np.arange(len(p)), labels].mean(), rel=1e-5)
    assert ours["recall_at_k"]["10"] == pytest.approx((rank < 10).mean())
    assert (ours["num_utts"], ours["num_frames"], result["num_pdfs"]) == (3, 18, PDFS)


def test_sparse_statistics_are_those_of_the_entries(data, tmp_path):
    posts, alis, full, ali = data
    with PosteriorWriter(f"ark:{tmp_path}/wide.ark") as writer:
        for utt, p in posts.items():
            essence = select(p, EssenceSettings(select="min-post", min_post=0.03, mass="keep"))
            writer.write_ragged(utt, essence.offsets, essence.ids, essence.probs)
    dense, sparse = (collect(table, alignments=ali, factor=3) for table in (full, f"ark:{tmp_path}/wide.ark"))
    kept = [np.where(p >= 0.03, p, 0) for p in posts.values()]
    kept = [np.where((k > 0).any(axis=1, keepdims=True), k, p * (np.arange(PDFS) == p.argmax(axis=1)[:, None]))
            for k, p in zip(kept, posts.values())]
    k = np.concatenate(kept)
    np.testing.assert_allclose(sparse["f_k"], np.cumsum(-np.sort(-k, axis=1), axis=1).mean(axis=0)[:len(sparse["f_k"])],
                               rtol=1e-6)
    assert sparse["mean_mass"] == pytest.approx(k.sum(axis=1).mean(), rel=1e-6)
    assert sparse["k_for_mass"]["0.99"]["percentile_95"] is None
    assert sparse["alignment"]["top1_agreement"] == dense["alignment"]["top1_agreement"]
    labels = np.concatenate([alis[u][::3] for u in posts])
    assert sparse["alignment"]["mean_probability"] == pytest.approx(k[np.arange(len(k)), labels].mean(), rel=1e-5)


def test_blocks_of_frames_add_up():
    p = np.random.default_rng(1).dirichlet(np.ones(30), 50).astype(np.float32)
    ali = np.random.default_rng(1).integers(0, 30, 50)
    one, many = Statistics(), Statistics()
    one.add(None, p, ali)
    for i in range(0, 50, 7):
        many.add(None, p[i:i + 7], ali[i:i + 7])
    a, b = one.summary(), many.summary()
    np.testing.assert_allclose(a.pop("f_k"), b.pop("f_k"))
    assert a.pop("k_for_mass") == b.pop("k_for_mass")
    assert a["alignment"]["recall_at_k"] == b["alignment"]["recall_at_k"]
    for name in ("num_frames", "entropy_nats", "mean_mass"):
        assert a[name] == pytest.approx(b[name])


def test_disagreement_of_teachers(data, tmp_path):
    posts, _, full, _ = data
    rng = np.random.default_rng(2)
    others = {u: rng.dirichlet(np.ones(PDFS), len(p)).astype(np.float32) for u, p in posts.items()}
    other = table(MatrixWriter, tmp_path / "other", others)
    ours = collect(full, teachers=[full, other])["disagreement"]
    p, q = (np.concatenate(list(x.values())).astype(np.float64) for x in (posts, others))
    assert ours["kl_from_ensemble_nats"][0] == pytest.approx(0, abs=1e-6)
    assert ours["kl_from_ensemble_nats"][1] == pytest.approx((q * np.log(q / p)).sum(axis=1).mean(), rel=1e-4)
    differs = (p.argmax(axis=1) != q.argmax(axis=1)).mean()
    np.testing.assert_allclose(ours["top1_differs"], [[0, differs, 0], [differs, 0, differs], [0, differs, 0]])
    logs = table(MatrixWriter, tmp_path / "logs", {u: np.log(x) for u, x in others.items()})
    again = collect(full, teachers=[logs], teacher_kind="log")["disagreement"]
    assert again["kl_from_ensemble_nats"][0] == pytest.approx(ours["kl_from_ensemble_nats"][1], rel=1e-4)
    short = table(MatrixWriter, tmp_path / "short", {u: x for u, x in others.items() if u != "u2"})
    with pytest.raises(UserError, match="utterance u2: .*short.scp has nothing"):
        collect(full, teachers=[short])
    more = table(MatrixWriter, tmp_path / "more", {**others, "u9": others["u2"]})
    with pytest.raises(UserError, match="more.scp: has utterance u9 after .* has ended"):
        collect(full, teachers=[more])
    collect(full, teachers=[more], max_frames=1)  # whoever stops early does not ask for the rest


@pytest.mark.parametrize("frames", [5, 30_000])  # 40 columns: a matrix over a megabyte stays in its file
def test_every_second_utterance(tmp_path, frames):
    rng = np.random.default_rng(5)
    posts = {f"u{n}": rng.dirichlet(np.ones(PDFS), frames).astype(np.float32) for n in range(5)}
    full = table(MatrixWriter, tmp_path / "full", posts)
    teacher = table(MatrixWriter, tmp_path / "teacher", {u: p[:, ::-1] for u, p in posts.items()})
    half = {u: posts[u] for u in ("u0", "u2", "u4")}
    wanted = collect(table(MatrixWriter, tmp_path / "half", half),
                     teachers=[table(MatrixWriter, tmp_path / "reversed", {u: p[:, ::-1] for u, p in half.items()})])
    found = collect(full, teachers=[teacher], every=2)
    assert found["num_utts"] == 3 and found["f_k"] == wanted["f_k"]
    assert found["disagreement"]["kl_from_ensemble_nats"] == wanted["disagreement"]["kl_from_ensemble_nats"]
    assert collect(full, every=9)["num_utts"] == 1


def test_sizes_are_those_of_the_files():
    ids, probs = np.arange(20, dtype=np.int32)[None].repeat(1000, 0), np.full((1000, 20), 0.05, np.float32)
    sizes = bytes_per_frame(8816, 100, 20)
    kaldi = sum(memoryview(b).nbytes for b in encode_fixed(ids, probs))
    buffers = compact.encode(np.arange(1001) * 20, ids.ravel(), probs.ravel(), num_pdfs=8816)
    small = sum(memoryview(b).nbytes for b in buffers)
    assert sizes["dense"] == 4 * 8816 and sizes["wide"] == 1005
    assert kaldi / 1000 == pytest.approx(sizes["essence"], abs=0.05)
    assert small / 1000 == pytest.approx(sizes["compact"], abs=0.05)
    ahead = forecast(sizes, 927, 10, 50000.0)
    assert ahead["frames"] == 333_720_000
    assert ahead["essence_bytes"] == pytest.approx(68.4e9, rel=1e-3)
    assert ahead["select_seconds"] == pytest.approx(6674.4)
    assert "dense" not in bytes_per_frame(None, 100, 20)


def test_the_verb_writes_json_and_plot(data, tmp_path, capsys):
    _, _, full, ali = data
    (tmp_path / "full.json").write_text('{"frame_shift_ms": 30, "num_pdfs": 40}')
    assert main(["post-stats", "--alignment", ali, "--json", f"{tmp_path}/s.json", "--plot", f"{tmp_path}/f.png",
                 "--hours", "100", "--teacher", full, full]) == 0
    shown = capsys.readouterr().out
    for part in ("3 utterances, 18 frames, 40 pdfs", "k for 95% of the mass", "entropy", "aligned pdf-id",
                 "another best", "bytes per frame: dense 160", "100 h at 30 ms: 12.0 M frames"):
        assert part in shown
    result = json.loads((tmp_path / "s.json").read_text())
    assert len(result["f_k"]) == PDFS and result["forecast"]["frames"] == 12e6
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert main(["post-stats", "--max-frames", "3", full]) == 0
    assert "1 utterances, 5 frames" in capsys.readouterr().out
    assert main(["post-stats", "--every", "2", full]) == 0
    assert "2 utterances, " in capsys.readouterr().out
    assert main(["post-stats", "--every", "0", full]) != 0
    assert "--every cannot be 0" in capsys.readouterr().err


def test_tables_of_another_tree_are_refused(data, tmp_path):
    _, _, full, ali = data
    mine = {"num_pdfs": PDFS, "tree_hash": "aa", "frame_shift_ms": 30}
    (tmp_path / "full.json").write_text(json.dumps(mine))
    table(MatrixWriter, tmp_path / "other", data[0])
    for options, name, others in ((dict(alignments=ali), "ali", {"num_pdfs": 41, "tree_hash": "bb"}),
                                  (dict(teachers=[f"scp:{tmp_path}/other.scp"]), "other",
                                   {"num_pdfs": 41, "tree_hash": "bb", "frame_shift_ms": 10})):
        for key, value in others.items():
            (tmp_path / f"{name}.json").write_text(json.dumps({**mine, key: value}))
            with pytest.raises(UserError, match=f"{key} differs: {mine[key]} in .*full.json, {value} in .*{name}.json"):
                collect(full, **options)
        (tmp_path / f"{name}.json").write_text(json.dumps({**mine, "frame_shift_ms": 10} if name == "ali" else mine))
        collect(full, **options)


def test_empty_utterances_count_as_nothing(data, tmp_path):
    posts, _, full, ali = data
    empty = table(MatrixWriter, tmp_path / "gaps", {"x": np.zeros((0, 0), np.float32), **posts,
                                                    "y": np.zeros((0, 0), np.float32)})
    plain, gaps = collect(full, alignments=ali, factor=3), collect(empty, alignments=ali, factor=3)
    assert (gaps["num_utts"], gaps["num_frames"], gaps["f_k"]) == (5, plain["num_frames"], plain["f_k"])


def test_mistakes(data, tmp_path, capsys):
    _, _, full, ali = data
    empty = table(MatrixWriter, tmp_path / "empty", {})
    none = table(IntVectorWriter, tmp_path / "none", {"x": np.zeros(3, np.int32)})
    high = table(IntVectorWriter, tmp_path / "high", {"u0": np.full(15, PDFS, np.int32)})
    with PosteriorWriter(f"ark:{tmp_path}/post.ark") as writer:
        writer.write("u0", np.zeros((2, 1), np.int32), np.ones((2, 1), np.float32))
    with PosteriorWriter(f"ark:{tmp_path}/bare.ark") as writer:
        writer.write("u0", np.zeros((2, 0), np.int32), np.zeros((2, 0), np.float32))
    for arguments, message in (
            ([empty], "holds no frame"),
            ([f"ark:{tmp_path}/bare.ark"], "none of its frames holds an entry"),
            (["--alignment", none, full], "aligns no utterance"),
            (["--alignment", ali, full], "5 frames of posteriors, but the alignment has 15 frames; --frame-sub"),
            (["--frame-subsampling-factor", "3", "--alignment", high, full],
             "utterance u0: its alignment has pdf-ids from 40"),
            (["--plot", "f_k", full], "--plot f_k: the name must end in .png, .pdf or .svg"),
            (["--hours", "-1", full], "--hours cannot be -1"), (["--top-k", "0", full], "--top-k cannot be 0"),
            (["--json", f"{tmp_path}/full.json", full], "full.json: is the sidecar of scp:"),
            (["--input", "log", full], "--input prob"), (["--input", "post", full], "a matrix, but --input says post"),
            (["--input", "log", f"ark:{tmp_path}/post.ark"], "a Posterior, but --input says log"),
            (["--teacher", full, f"ark:{tmp_path}/post.ark"], "teachers are compared with whole posteriors")):
        assert main(["post-stats", *arguments]) == 1
        assert message in capsys.readouterr().err
