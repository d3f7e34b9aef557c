"""Kaldi's HCLG.fst and final.mdl as the stored form: against the graph they came from, frame rates, bad input."""
import json
import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from builders.decoding import decode, read_hyp, write
from builders.graphs import (LEXICON, as_fst, best, kaldis_graph, kaldis_hclg, make_lang, make_model, scores_of,
                             wander)
from kaldi_files import transition_model_text

from essence_kd.cli.main import main
from essence_kd.decode.lattice import path_word_spans, path_words
from essence_kd.hmm import graph as R
from essence_kd.hmm.fst import Fst, make_fst, write_fst
from essence_kd.hmm.hclg import import_graph
from essence_kd.hmm.transition_model import read_transition_model
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import write_sidecar

CHAIN = [[(0, 0.5), (1, 0.5)]]  # the topology of chain models: one state whose self-loop has a pdf of its own


def mdl_text(topo, rows):
    """A transition model in Kaldi's text form, with another model behind it."""
    return transition_model_text(topo, rows) + "<DIMENSION> 39 <NUMPDFS> 5 "


def mdl_binary(topo, rows):
    """The same in Kaldi's binary form, with bytes behind it."""
    apart = len(rows[0]) == 4

    def number(value, kind="<i"):
        return b"\4" + struct.pack(kind, value)

    def integers(values):
        return number(len(values)) + np.array(values, "<i4").tobytes()

    phones = sorted(topo)
    entry_of = [-1] * (phones[-1] + 1)
    for index, phone in enumerate(phones):
        entry_of[phone] = index
    out = [b"\0B<TransitionModel> <Topology> ", integers(phones), integers(entry_of)]
    out += [number(-1)] * apart + [number(len(phones))]
    for phone in phones:
        out.append(number(len(topo[phone]) + 1))
        for state, arcs in enumerate([*topo[phone], []]):
            emits = state < len(topo[phone])
            out += [number(state if emits else -1)] + [number(state + 1 if emits else -1)] * apart + [number(len(arcs))]
            out += [number(dst) + number(prob, "<f") for dst, prob in arcs]
    kind = b"Tuples" if apart else b"Triples"
    out += [b"</Topology> <" + kind + b"> ", number(len(rows)), b"".join(number(x) for row in rows for x in row)]
    probs = [0.0] + [np.log(prob) for row in rows for _, prob in topo[row[0]][row[1]]]
    out += [b"</" + kind + b"> <LogProbs> FV ", number(len(probs)), np.array(probs, "<f4").tobytes()]
    return b"".join([*out, b"</LogProbs> </TransitionModel> <Nnet3> ", bytes(range(256))])


@pytest.fixture(scope="module")
def kaldi(tmp_path_factory):
    """A lang, a model, and what Kaldi leaves of them: HCLG.fst, final.mdl, words.txt, phones.txt, word_boundary.int."""
    root = tmp_path_factory.mktemp("kaldi")
    lang = make_lang(root)
    model = make_model(lang)
    rows = [tuple(row) for row in model.transitions.tuples[:, :3].tolist()]
    hclg = kaldis_hclg(lang, model, 1.0, 0.1)
    graph = root / "graph"
    (graph / "phones").mkdir(parents=True)
    write_fst(graph / "HCLG.fst", hclg)
    to_const(graph / "HCLG.fst", graph / "HCLG.const.fst")
    (root / "final.mdl").write_bytes(mdl_binary(lang.topo, rows))
    (root / "final.txt").write_text(mdl_text(lang.topo, rows))
    for name in ("words.txt", "phones.txt", "phones/word_boundary.int"):
        (graph / name).write_text((root / "lang" / name).read_text())
    return dict(root=root, graph=graph, lang=lang, model=model, rows=rows, hclg=hclg)


def to_const(source, target):
    import kaldifst

    kaldifst.StdConstFst(kaldifst.StdVectorFst.read(str(source))).write(str(target))


def read(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_transition_model(path)


@pytest.mark.parametrize("form", [mdl_text, mdl_binary])
def test_transition_ids_mean_what_kaldi_means(kaldi, tmp_path, form):
    model, lang = kaldi["model"], kaldi["lang"]
    found = read(tmp_path / "a.mdl", form(lang.topo, kaldi["rows"]))
    assert found.num_ids == model.transitions.num_ids and found.num_pdfs == model.num_pdfs
    for name in ("pdf", "phone", "state", "next", "loop", "begin", "row"):
        assert np.array_equal(getattr(found, name), getattr(model.transitions, name)), name


@pytest.mark.parametrize("form", [mdl_text, mdl_binary])
def test_self_loops_with_a_pdf_of_their_own(tmp_path, form):
    found = read(tmp_path / "a.mdl", form({1: CHAIN, 3: CHAIN}, [(1, 0, 0, 1), (3, 0, 2, 1), (3, 0, 4, 5)]))
    assert found.pdf.tolist() == [-1, 1, 0, 1, 2, 5, 4]  # the self-loop comes first in the topology
    assert found.loop[1:].tolist() == [1, 0, 1, 0, 1, 0] and found.phone[1:].tolist() == [1, 1, 3, 3, 3, 3]
    assert found.num_pdfs == 6


@pytest.mark.kaldi("src/bin/copy-transition-model")
@pytest.mark.parametrize("apart", [False, True])
def test_transition_models_that_kaldi_wrote(kaldi, tmp_path, apart):
    program = Path(os.environ["KALDI_ROOT"], "src", "bin", "copy-transition-model")
    topo, rows = ({1: CHAIN, 3: CHAIN}, [(1, 0, 0, 1), (3, 0, 2, 1), (3, 0, 4, 5)]) if apart else (
        kaldi["lang"].topo, kaldi["rows"])
    ours = read(tmp_path / "ours", mdl_text(topo, rows))
    for binary in ("true", "false"):
        subprocess.run([program, f"--binary={binary}", tmp_path / "ours", tmp_path / binary], check=True,
                       capture_output=True)
        theirs = read_transition_model(tmp_path / binary)
        for name in ("phone", "state", "pdf", "loop"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), (binary, name)


@pytest.mark.parametrize("hclg, mdl", [("HCLG.fst", "final.mdl"), ("HCLG.const.fst", "final.txt")])
def test_imported_graph_has_the_paths_and_costs_of_hclg(kaldi, hclg, mdl):
    graph = import_graph(kaldi["graph"] / hclg, kaldi["root"] / mdl, kaldi["graph"] / "words.txt")
    theirs = kaldis_graph(kaldi["lang"], kaldi["model"], 1.0, 0.1)
    assert graph.num_arcs == theirs.num_arcs and graph.num_pdfs == kaldi["model"].num_pdfs
    assert graph.meta["frame_subsampling_factor"] == 1 and graph.frame_shift_ms == 10
    assert graph.words.tolist() == kaldi["lang"].words and graph.phones.tolist() == kaldi["lang"].phones
    emitting = graph.ilabel > 0
    assert (graph.unit_pdf[graph.unit[emitting]] + 1 == graph.ilabel[emitting]).all()
    rng = np.random.default_rng(0)
    flat = as_fst(graph)
    for _ in range(30):
        path = wander(graph, rng)
        labels = graph.ilabel[path][graph.ilabel[path] > 0]
        a, b = best(flat, labels), best(theirs, labels)
        assert np.isfinite(a[0]) and a[0] == pytest.approx(b[0], abs=1e-3) and a[1] == b[1]


def test_imported_paths_tell_where_words_begin(kaldi):
    """Each word of a path spans the frames of one of its pronunciations, as in the native graph."""
    graph = import_graph(kaldi["graph"] / "HCLG.fst", kaldi["root"] / "final.mdl", kaldi["graph"] / "words.txt")
    assert graph.meta["word_times"] == "phones"
    rng = np.random.default_rng(1)
    seen = 0
    for _ in range(40):
        path = wander(graph, rng)
        frames = path[graph.ilabel[path] > 0]
        for word, start, length in zip(path_words(graph, path), *path_word_spans(graph, path)):
            own = frames[start:start + length]
            phones = graph.phones[graph.unit_phone[graph.unit[own]][graph.begin[own] > 0]]
            assert " ".join(p[:-2] for p in phones) in LEXICON[str(graph.words[word])]
            seen += 1
    assert seen > 50


def import_verb(kaldi, out, *options, hclg="HCLG.fst"):
    return main(["import-graph", *map(str, options), str(kaldi["graph"] / hclg), str(kaldi["root"] / "final.mdl"),
                 str(kaldi["graph"] / "words.txt"), str(out)])


def test_networks_at_30_ms_decode_a_graph_at_10_ms(kaldi, tmp_path, capsys):
    """Scores of every third frame: rows are repeated, and words lie where they were said."""
    assert import_verb(kaldi, tmp_path / "graph") == 0
    assert "a row every 10 ms" in capsys.readouterr().out
    graph = R.load_graph(tmp_path / "graph" / "graph.npz")
    rng = np.random.default_rng(4)
    thin, full, said, spans = {}, {}, {}, {}
    for number in range(8):
        while True:
            path = wander(graph, rng, longest=300)
            if 2 <= len(path_words(graph, path)) <= 6:
                break
        utt = f"u{number}"
        clear = scores_of(graph, path, rng, strength=60.0)
        slow = np.repeat(clear, 6, axis=0)  # every frame lasts 6: a row of every third frame tells all
        full[utt], thin[utt] = slow, slow[::3]
        said[utt] = graph.words[path_words(graph, path)].tolist()
        spans[utt] = [6 * column for column in path_word_spans(graph, path)]
    write(tmp_path / "thin", thin)
    write(tmp_path / "full", full)
    write_sidecar(tmp_path / "thin.json", {"num_pdfs": graph.num_pdfs, "frame_shift_ms": 30})
    runs = {"full": [], "thin": [], "told": ["--repeat-rows", 3], "shift": ["--frame-shift-ms", 30]}
    for name, options in runs.items():
        scores = f"ark:{tmp_path}/{'full' if name == 'full' else 'thin'}.ark"
        if name == "told":
            (tmp_path / "thin.json").unlink()
        assert decode("--acoustic-scale", 1, "--beam", 200, "--max-active", 100000, *options, tmp_path / "graph",
                      scores, tmp_path / name) == 0
        report = json.loads((tmp_path / name / "decode.json").read_text())
        assert (report["frame_shift_ms"], report["repeat_rows"]) == ((10, 1) if name == "full" else (30, 3))
        assert report["num_frames"] == sum(map(len, (full if name == "full" else thin).values()))
        assert report["audio_seconds"] == pytest.approx(sum(map(len, full.values())) * 0.01)
        hyp = read_hyp(tmp_path / name)
        assert [w.replace("read", "red") for u in said for w in hyp[u]] == [
            w.replace("read", "red") for u in said for w in said[u]]  # red and read sound alike
        times = [line.split() for line in (tmp_path / name / "hyp.ctm").read_text().splitlines()]
        for utt, (start, length) in spans.items():
            own = [(float(t[2]), float(t[3])) for t in times if t[0] == utt]
            assert own == [pytest.approx((0.01 * s, 0.01 * n), abs=1e-3) for s, n in zip(start, length)]


def test_repeated_rows_carry_a_part_of_the_score(kaldi, tmp_path):
    """Costs, and so the choice between model and grammar, do not depend on the number of repetitions."""
    from essence_kd.decode.decoders.kaldi import KaldiDecoder
    from essence_kd.decode.options import DecodeOptions
    from essence_kd.decode.workers import Task, run_task

    graph = import_graph(kaldi["graph"] / "HCLG.fst", kaldi["root"] / "final.mdl", kaldi["graph"] / "words.txt")
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20, graph.num_pdfs)).astype(np.float32)
    options = DecodeOptions(acoustic_scale=0.5, beam=100.0, max_active=100000, frame_shift_ms=30, repeat_rows=3)
    decoder = KaldiDecoder(graph, options)
    (outcome,), _ = run_task(decoder, Task(0, ["u"], [scores], options, n_best=3))
    thirds = np.repeat(scores / 3, 3, axis=0)
    path = decoder.decode([thirds])[0].path
    labels = graph.ilabel[path][graph.ilabel[path] > 0]
    cost = graph.weight[path].sum() + graph.final[graph.dst[path[-1]]] - 0.5 * thirds[np.arange(60), labels - 1].sum()
    assert outcome.n_best[0].cost == pytest.approx(float(cost), abs=0.01)


def test_chain_models_need_no_repetition(tmp_path, capsys):
    """HCLG and transition model of the chain form: 30 ms per row, told by the file beside final.mdl."""
    topo, rows = {1: CHAIN, 2: CHAIN}, [(1, 0, 0, 1), (2, 0, 2, 3)]
    # transition-ids: phone 1: loop 1, on 2; phone 2: loop 3, on 4. "a" says phone 1, "b" phone 2.
    fst = make_fst([0, 0, 1, 1, 2, 2], [1, 2, 1, 0, 2, 0], [2, 4, 1, 0, 3, 0], [1, 2, 0, 0, 0, 0],
                   [0.5, 0.6, 0.7, 0.7, 0.7, 0.7], [0.0, 0.1, 0.2])
    (tmp_path / "final.mdl").write_bytes(mdl_binary(topo, rows))
    (tmp_path / "frame_subsampling_factor").write_text("3\n")
    (tmp_path / "words.txt").write_text("<eps> 0\na 1\nb 2\n")
    write_fst(tmp_path / "HCLG.fst", fst)
    command = ["import-graph", *(str(tmp_path / n) for n in ("HCLG.fst", "final.mdl", "words.txt", "g"))]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "a row every 30 ms" in said.out and "no phones/word_boundary.int" in said.err
    graph = R.load_graph(tmp_path / "g" / "graph.npz")
    assert sorted(graph.ilabel.tolist()) == [0, 0, 1, 2, 3, 4] and graph.num_pdfs == 4
    scores = np.full((5, 4), -9.0, np.float32)
    scores[np.arange(5), [2, 3, 0, 1, 0]] = 0  # b for two rows, a for two, a again
    write(tmp_path / "s", {"u": scores})
    write_sidecar(tmp_path / "s.json", {"num_pdfs": 4, "frame_shift_ms": 30})
    assert decode("--acoustic-scale", 1, tmp_path / "g", f"ark:{tmp_path}/s.ark", tmp_path / "o") == 0
    assert read_hyp(tmp_path / "o") == {"u": ["b", "a", "a"]}
    assert [line.split()[2:4] for line in (tmp_path / "o" / "hyp.ctm").read_text().splitlines()] == [
        ["0.000", "0.060"], ["0.060", "0.060"], ["0.120", "0.030"]]


def test_the_verb_and_the_alignment(kaldi, tmp_path, capsys):
    ali = tmp_path / "ali"
    ali.mkdir()
    write_sidecar(ali / "ali.json", {"num_pdfs": kaldi["model"].num_pdfs, "tree_hash": "f00d"})
    assert import_verb(kaldi, tmp_path / "g", "--ali-dir", ali, "--frame-subsampling-factor", 3) == 0
    about = json.loads((tmp_path / "g" / "graph.json").read_text())
    assert about["tree_hash"] == "f00d" and about["frame_shift_ms"] == 30 and about["kind"] == "graph"
    assert (tmp_path / "g" / "words.txt").read_text() == (kaldi["graph"] / "words.txt").read_text()
    write_sidecar(ali / "ali.json", {"num_pdfs": 7, "tree_hash": "f00d"})
    assert import_verb(kaldi, tmp_path / "h", "--ali-dir", ali) == 1
    assert "num_pdfs differs: 7 in" in capsys.readouterr().err and not (tmp_path / "h").exists()


def test_scores_that_cannot_be_brought_to_the_graphs_rate(kaldi, tmp_path, capsys):
    assert import_verb(kaldi, tmp_path / "g", "--frame-subsampling-factor", 3) == 0
    write(tmp_path / "s", {"u": np.zeros((4, kaldi["model"].num_pdfs), np.float32)})
    for shift in (10, 40):
        write_sidecar(tmp_path / "s.json", {"frame_shift_ms": shift})
        assert decode(tmp_path / "g", f"ark:{tmp_path}/s.ark", tmp_path / "o") == 1
        assert f"has a row every {shift} ms, but the graph" in capsys.readouterr().err
    assert decode("--frame-shift-ms", 30, tmp_path / "g", f"ark:{tmp_path}/s.ark", tmp_path / "o") == 1
    assert "frame_shift_ms differs: 40 in" in capsys.readouterr().err


def spoilt(fst, **columns):
    return Fst(**{**{name: getattr(fst, name) for name in Fst.__dataclass_fields__}, **columns})


@pytest.mark.parametrize("spoil, words", [
    (lambda f: spoilt(f, ilabel=f.ilabel + 9000), "the graph was made with another model"),
    (lambda f: spoilt(f, olabel=np.where(f.olabel > 0, 500, 0).astype(np.int32)), "word-id 500 is on an arc, but not"),
    (lambda f: spoilt(f, ilabel=-f.ilabel), "negative label"),
    (lambda f: spoilt(f, final=np.full_like(f.final, np.inf)), "no path leads to a final state"),
    (lambda f: spoilt(f, ilabel=np.zeros_like(f.ilabel)), "form a cycle"),
    (lambda f: make_fst([], [], [], [], [], [], -1), "the graph is empty"),
])
def test_graphs_that_do_not_fit(kaldi, tmp_path, capsys, spoil, words):
    write_fst(tmp_path / "HCLG.fst", spoil(kaldi["hclg"]))
    assert main(["import-graph", str(tmp_path / "HCLG.fst"), str(kaldi["root"] / "final.mdl"),
                 str(kaldi["graph"] / "words.txt"), str(tmp_path / "g")]) == 1
    said = capsys.readouterr().err
    assert words in said and "HCLG.fst" in said and said.count("\n") == 1 and not (tmp_path / "g").exists()


def test_models_that_are_broken(kaldi, tmp_path):
    whole = {"b": (kaldi["root"] / "final.mdl").read_bytes(), "t": (kaldi["root"] / "final.txt").read_bytes()}
    end = {"b": whole["b"].index(b"</TransitionModel>"), "t": whole["t"].index(b"</TransitionModel>")}
    for form, data in whole.items():
        for keep in (0, 1, 30, end[form] // 3, end[form] // 2, end[form]):
            with pytest.raises(UserError, match="a.mdl: holds no whole transition model"):
                read(tmp_path / "a.mdl", data[:keep])
    text = whole["t"]
    for data in (b"\0B<Nnet3> ", text.replace(b"<State> 0", b"<Stat> 0"), text.replace(b"<LogProbs>", b"[")):
        with pytest.raises(UserError, match="a.mdl: holds no whole transition model"):
            read(tmp_path / "a.mdl", data)
    with pytest.raises(UserError, match="No such file"):
        read_transition_model(tmp_path / "none.mdl")


def test_phones_that_do_not_fit(kaldi, tmp_path, capsys):
    other = tmp_path / "lang"
    (other / "phones").mkdir(parents=True)
    assert import_verb(kaldi, tmp_path / "g", "--lang", other) == 1
    assert "has no phones.txt" in capsys.readouterr().err
    (other / "phones.txt").write_text("<eps> 0\nSIL 1\n")
    assert import_verb(kaldi, tmp_path / "g", "--lang", other) == 1
    assert "phones.txt ends at 1" in capsys.readouterr().err
    (other / "phones" / "word_boundary.int").write_text("9 begin\n")
    assert import_verb(kaldi, tmp_path / "g", "--lang", other) == 1
    assert "phone-id 9 is not in" in capsys.readouterr().err
    (other / "phones" / "word_boundary.int").write_text("1 middle\n")
    assert import_verb(kaldi, tmp_path / "g", "--lang", other) == 1
    assert "expected 'PHONE-ID POSITION'" in capsys.readouterr().err
    (kaldi["root"] / "frame_subsampling_factor").write_text("three")
    try:
        assert import_verb(kaldi, tmp_path / "g") == 1
        assert "'three' is no number of frames" in capsys.readouterr().err
    finally:
        (kaldi["root"] / "frame_subsampling_factor").unlink()
