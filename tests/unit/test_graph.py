"""Decoding graphs: against Kaldi's own H transducer, against thinned-out full-rate paths, and by decoding with them."""
import json

import numpy as np
import pytest
from builders.graphs import (
    LEXICON,
    TEXT,
    as_fst,
    best,
    build,
    kaldis_graph,
    make_lang,
    make_model,
    pdf_table,
    wander,
)

from essence_kd.cli.main import main
from essence_kd.hmm import graph as R
from essence_kd.hmm import lang as L
from essence_kd.hmm.fst import make_fst, read_fst, to_kaldifst, write_fst
from essence_kd.hmm.gmm import save_gmm
from essence_kd.hmm.gmm_alignment import SubsampledCounts
from essence_kd.io.errors import UserError


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    root = tmp_path_factory.mktemp("graph")
    lang = make_lang(root)
    model = make_model(lang)
    graphs = {f: build(lang, model, f, meta={"frame_subsampling_factor": f}) for f in (1, 3)}
    return dict(root=root, lang=lang, model=model, graphs=graphs)


# -------------------------------------------------------------------------------------------- topology at a frame rate

def test_factor_one_is_the_topology_itself():
    topology = L.silence_topology(5)
    hmm = R.subsample(topology, 1)
    assert hmm.enter.tolist() == [1, 0, 0, 0, 0]
    for state, arcs in enumerate(topology):
        row = dict(arcs)
        np.testing.assert_allclose(hmm.stay[state], [row.get(s, 0) for s in range(5)])
        assert hmm.leave[state] == pytest.approx(row.get(5, 0))


def test_linear_topology_thinned_out_by_three():
    """Three states of self-loop 0.75, by hand: from the first state three steps lead to 0, 1, 2 and never out."""
    hmm = R.subsample(L.linear_topology(3), 3)
    stay, go = 0.75, 0.25
    np.testing.assert_allclose(hmm.stay[0], [stay ** 3, 3 * stay ** 2 * go, 3 * stay * go ** 2])
    assert hmm.leave[0] == pytest.approx(go ** 3)
    np.testing.assert_allclose(hmm.stay[2], [0, 0, stay ** 3])
    np.testing.assert_allclose(hmm.enter, [(1 + stay + stay ** 2) / 3, (go + 2 * stay * go) / 3, go ** 2 / 3])


@pytest.mark.parametrize("topology", [L.linear_topology(3), L.silence_topology(5), L.linear_topology(1),
                                      L.silence_topology(3)])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_it_is_a_distribution(topology, factor):
    hmm = R.subsample(topology, factor)
    assert hmm.enter.sum() == pytest.approx(1)
    np.testing.assert_allclose(hmm.stay.sum(axis=1) + hmm.leave, 1)


def walk(topology, transitions, rng):
    """States of one occurrence of a phone at the full rate."""
    states = [0]
    while True:
        arcs = topology[states[-1]]
        state = arcs[int(rng.choice(len(arcs), p=transitions[states[-1]]))][0]
        if state == len(topology):
            return states
        states.append(state)


def test_thinned_out_walks_have_these_frequencies():
    """The matrices against 20,000 simulated occurrences of a phone whose first kept frame is its 1st, 2nd or 3rd."""
    rng = np.random.default_rng(0)
    topology = L.silence_topology(5)
    transitions = [rng.dirichlet(np.full(len(arcs), 4.0)) for arcs in topology]
    hmm = R.subsample([[(d, p) for (d, _), p in zip(arcs, row)] for arcs, row in zip(topology, transitions)], 3)
    enter, stay, leave = np.zeros(5), np.zeros((5, 5)), np.zeros(5)
    for n in range(20000):
        kept = walk(topology, transitions, rng)[n % 3::3]
        enter[kept[0]] += 1
        leave[kept[-1]] += 1
        for a, b in zip(kept, kept[1:]):
            stay[a, b] += 1
    np.testing.assert_allclose(enter / enter.sum(), hmm.enter, atol=0.01)
    total = stay.sum(axis=1) + leave
    # a kept frame of a given state may be any of the phone's frames: within the noise the rows agree
    np.testing.assert_allclose(stay / total[:, None], hmm.stay, atol=0.03)


def test_counts_decide_where_there_are_many(setup):
    lang, model = setup["lang"], setup["model"]
    rows = {key: n for n, key in enumerate(lang.phone_and_state())}
    counts = SubsampledCounts.empty(model.transitions, 3)
    phone = lang.phone_ids["R_B"]
    n = rows[phone, 0]
    counts.enter[n:n + 3] = [600, 300, 100]
    counts.stay[n, :3] = [2000, 5000, 1000]
    counts.leave[n:n + 3] = [2000, 1, 1]
    tuples = model.transitions.tuples
    with_counts, without = ({phone: R.UnitHmms(model.transitions, 3, c).of(
        phone, np.flatnonzero(tuples[:, 0] == phone).tolist()) for phone in lang.topo} for c in (counts, None))
    np.testing.assert_allclose(with_counts[phone].enter, [0.6, 0.3, 0.1], atol=0.01)
    np.testing.assert_allclose(with_counts[phone].stay[0], [0.2, 0.5, 0.1], atol=0.01)
    other = lang.phone_ids["A_S"]
    np.testing.assert_allclose(with_counts[other].stay, without[other].stay)
    for hmm in with_counts.values():
        np.testing.assert_allclose(hmm.stay.sum(axis=1) + hmm.leave, 1)
        assert hmm.enter.sum() == pytest.approx(1)


# --------------------------------------------------------------------------------------------------------- whole graphs

def test_stored_form(setup):
    for factor, graph in setup["graphs"].items():
        assert (np.diff(graph.src) >= 0).all()
        assert graph.src.max() < graph.num_states and graph.dst.max() < graph.num_states
        emitting = graph.ilabel > 0
        assert (graph.unit_pdf[graph.unit[emitting]] + 1 == graph.ilabel[emitting]).all()
        assert (graph.unit[~emitting] == 0).all() and (graph.begin[~emitting] == 0).all()
        assert graph.num_pdfs == setup["model"].num_pdfs and graph.ilabel.max() <= graph.num_pdfs
        assert np.isfinite(graph.weight).all() and np.isfinite(graph.final).any()
        loops = emitting & (graph.src == graph.dst)
        assert (graph.begin[loops] == 0).all() and (graph.olabel[loops] == 0).all()
        assert graph.phones[graph.unit_phone[1]] == setup["lang"].phones[graph.unit_phone[1]]
        assert graph.meta["frame_subsampling_factor"] == factor
        assert "<unk>" not in {str(graph.words[w]) for w in graph.olabel}  # the text does not have it


def test_epsilons_form_no_cycle(setup):
    for graph in setup["graphs"].values():
        arcs = np.flatnonzero(graph.ilabel == 0)
        left = set(arcs.tolist())
        while left:  # take away arcs into states that no epsilon leaves
            sources = set(graph.src[list(left)].tolist())
            free = {a for a in left if int(graph.dst[a]) not in sources}
            assert free, "a cycle of epsilons"
            left -= free


def test_everything_is_on_a_path(setup):
    for graph in setup["graphs"].values():
        again = R.trim(as_fst(graph))
        assert (again.num_states, again.num_arcs) == (graph.num_states, graph.num_arcs)


@pytest.mark.parametrize("transition_scale, self_loop_scale", [(1.0, 0.1), (0.5, 1.0)])
def test_same_words_and_costs_as_kaldis_graph(setup, transition_scale, self_loop_scale):
    lang, model = setup["lang"], setup["model"]
    ours = build(lang, model, transition_scale=transition_scale, self_loop_scale=self_loop_scale)
    theirs = kaldis_graph(lang, model, transition_scale, self_loop_scale)
    rng = np.random.default_rng(0)
    flat = as_fst(ours)
    for number in range(60):
        path = wander(ours, rng)
        labels = ours.ilabel[path][ours.ilabel[path] > 0]
        if number % 3 == 2:  # a path that may not exist: both must say so
            labels = labels[rng.permutation(len(labels))]
        a, b = best(flat, labels), best(theirs, labels)
        assert a[0] == pytest.approx(b[0], abs=2e-3) and a[1] == b[1]
        if number % 3 != 2:
            own = ours.weight[path].sum() + (ours.final[ours.dst[path[-1]]] if len(path) else ours.final[0])
            assert a[0] <= own + 1e-3


def spoken(lang, words, rng):
    """(phone-id) sequence of words with a random pronunciation and random silences."""
    phones = []
    for word in words:
        if rng.random() < 0.5:
            phones.append(lang.phone_ids["SIL"])
        prons = LEXICON[word]
        pron = L.add_positions(tuple(prons[int(rng.integers(len(prons)))].split()))
        phones += [lang.phone_ids[p] for p in pron]
    if rng.random() < 0.5:
        phones.append(lang.phone_ids["SIL"])
    return phones


@pytest.mark.parametrize("factor", [1, 3])
def test_thinned_out_paths_are_accepted(setup, factor):
    """Any full-rate path of a sentence, thinned out at any phase, is a path of the graph with the sentence's words."""
    lang, model, graph = setup["lang"], setup["model"], setup["graphs"][factor]
    rng = np.random.default_rng(1)
    pdf = pdf_table(model)
    flat = as_fst(graph)
    for _ in range(40):
        words = TEXT[int(rng.integers(len(TEXT)))].split()
        frames = []
        for phone in spoken(lang, words, rng):
            rows = [np.array([p for _, p in arcs]) for arcs in lang.topo[phone]]
            frames += [pdf[phone, s] for s in walk(lang.topo[phone], rows, rng)]
        for phase in range(factor):
            kept = np.array(frames[phase::factor]) + 1
            cost, found = best(flat, kept)
            assert np.isfinite(cost)
            heard = [lang.words[w] for w in found]
            # red and read sound alike: the language model decides
            assert [w.replace("read", "red") if w != "reader" else w for w in heard] == \
                   [w.replace("read", "red") if w != "reader" else w for w in words]
    if factor == 1:  # nothing else is: here a state is left out
        a = lang.phone_ids["A_S"]
        assert best(flat, [pdf[a, 0] + 1, pdf[a, 1] + 1, pdf[a, 2] + 1])[0] < np.inf
        assert best(flat, [pdf[a, 0] + 1, pdf[a, 2] + 1, pdf[a, 2] + 1])[0] == np.inf


@pytest.mark.parametrize("factor", [1, 3])
def test_word_boundaries_can_be_read_from_paths(setup, factor):
    """Phones of a path (unit, begin) form as many words as there are word labels, each a pronunciation of its label."""
    graph = setup["graphs"][factor]
    rng = np.random.default_rng(2)
    for _ in range(60):
        path = wander(graph, rng)
        frames = path[graph.ilabel[path] > 0]
        first = graph.begin[frames] > 0
        assert not len(frames) or first[0]
        phones = graph.unit_phone[graph.unit[frames]]
        assert (first[1:] | (phones[1:] == phones[:-1])).all()  # a phone changes only where one begins
        groups, word = [], []
        for phone in phones[first]:
            kind = graph.phone_kind[phone]
            if kind == 0:
                assert not word
                continue
            word.append(str(graph.phones[phone])[:-2])
            assert (kind in (1, 4)) == (len(word) == 1)
            if kind in (2, 4):
                groups.append(" ".join(word))
                word = []
        labels = [str(graph.words[w]) for w in graph.olabel[path] if w]
        assert len(labels) == len(groups) and not word
        for label, group in zip(labels, groups):
            assert group in LEXICON[label]


@pytest.mark.parametrize("factor", [1, 3])
def test_decoding_known_paths_gives_the_words(setup, factor):
    import kaldi_decoder
    import kaldifst

    lang, model, graph = setup["lang"], setup["model"], setup["graphs"][factor]
    rng = np.random.default_rng(3)
    fst = kaldifst.StdConstFst(to_kaldifst(as_fst(graph)))
    pdf = pdf_table(model)
    for _ in range(20):
        words = TEXT[int(rng.integers(len(TEXT)))].replace("read", "red").replace("reder", "reader").split()
        frames = []
        for phone in spoken(lang, words, rng):
            for state in range(len(lang.topo[phone])):
                frames += [pdf[phone, state]] * int(rng.integers(2, 6))
        kept = frames[::factor]
        scores = rng.normal(-8, 1, (len(kept), model.num_pdfs)).astype(np.float32)
        scores[np.arange(len(kept)), kept] += 12
        decoder = kaldi_decoder.FasterDecoder(fst, kaldi_decoder.FasterDecoderOptions(beam=40, max_active=5000))
        decoder.decode(kaldi_decoder.DecodableCtc(scores))
        assert decoder.reached_final()
        _, lattice = decoder.get_best_path()
        _, labels, olabels, _ = kaldifst.get_linear_symbol_sequence(lattice)
        assert len(labels) == len(kept)
        assert ["red" if lang.words[w] == "read" else lang.words[w] for w in olabels] == words


def test_shared_pdfs(setup):
    """Positions that share pdfs stay apart as units: the graph still knows the phones."""
    lang = setup["lang"]
    model = make_model(lang, classes=[sorted(line) for line in lang.sets])
    graph = build(lang, model, 3)
    assert graph.num_pdfs == model.num_pdfs < setup["model"].num_pdfs
    assert len(graph.unit_pdf) - 1 == len(lang.phone_and_state())
    rng = np.random.default_rng(0)
    for _ in range(10):
        path = wander(graph, rng)
        frames = path[graph.ilabel[path] > 0]
        kinds = graph.phone_kind[graph.unit_phone[graph.unit[frames]][graph.begin[frames] > 0]]
        assert np.isin(kinds, (1, 4)).sum() == (graph.olabel[path] > 0).sum()


@pytest.mark.parametrize("options", [dict(num_nonsil_states=1, num_sil_states=1), dict(sil_prob=0.0),
                                     dict(num_sil_states=3)])
def test_other_langs(tmp_path, options):
    lang = make_lang(tmp_path, **options)
    model = make_model(lang)
    for factor in (1, 3):
        graph = build(lang, model, factor)
        pdf = pdf_table(model)
        phones = [lang.phone_ids[p] for p in ("D_B", "I_I", "A_E", "A_S")]
        frames = [pdf[p, s] + 1 for p in phones for s in range(len(lang.topo[p])) for _ in range(3)]
        assert [lang.words[w] for w in best(as_fst(graph), frames[::factor])[1]] == ["dear", "a"]


# -------------------------------------------------------------------------------------------------- files and bad input

def test_round_trip(setup, tmp_path):
    graph = setup["graphs"][3]
    R.save_graph(tmp_path / "graph.npz", graph)
    back = R.load_graph(tmp_path / "graph.npz")
    for name in R._FIELDS:
        a, b = getattr(graph, name), getattr(back, name)
        assert np.array_equal(a, b) and (b.dtype == R._FIELDS[name] or b.dtype.kind == "U"), name
    assert back.meta == graph.meta
    whole = (tmp_path / "graph.npz").read_bytes()
    for keep in (0, 10, len(whole) // 2, len(whole) - 30):
        (tmp_path / "graph.npz").write_bytes(whole[:keep])
        with pytest.raises(UserError, match="graph.npz"):
            R.load_graph(tmp_path / "graph.npz")
    np.savez(tmp_path / "graph.npz", src=np.zeros(3))
    with pytest.raises(UserError, match="broken or of another kind"):
        R.load_graph(tmp_path / "graph.npz")
    with pytest.raises(UserError, match="no such file; make the graph"):
        R.load_graph(tmp_path / "nothing.npz")


@pytest.fixture
def directories(setup, tmp_path):
    """A GMM directory and an alignment directory as the verbs leave them."""
    save_gmm(tmp_path / "gmm", setup["model"])
    ali = tmp_path / "ali"
    ali.mkdir()
    about = json.loads((tmp_path / "gmm" / "gmm.json").read_text())
    (ali / "ali.json").write_text(json.dumps({"num_pdfs": about["num_pdfs"], "tree_hash": about["tree_hash"]}))
    counts = SubsampledCounts.empty(setup["model"].transitions, 3)
    counts.enter += 5
    counts.leave += 5
    counts.save(ali / "topology.npz")
    return tmp_path / "gmm", ali


def test_verb(setup, directories, tmp_path, capsys):
    gmm, ali = directories
    lang, out = str(setup["root"] / "lang"), tmp_path / "graph"
    assert main(["make-graph", "--ali-dir", str(ali), lang, str(gmm), str(out)]) == 0
    assert "pdfs" in capsys.readouterr().out
    graph = R.load_graph(out / "graph.npz")
    about = json.loads((out / "graph.json").read_text())
    assert about["num_pdfs"] == graph.num_pdfs == setup["model"].num_pdfs and about["frame_subsampling_factor"] == 3
    assert about["transitions"] == "alignment" and about["num_arcs"] == graph.num_arcs
    assert about["tree_hash"] == json.loads((gmm / "gmm.json").read_text())["tree_hash"]
    assert (out / "words.txt").read_text() == (setup["root"] / "lang" / "words.txt").read_text()
    assert main(["make-graph", "--frame-subsampling-factor", "1", "--ali-dir", str(ali), lang, str(gmm), str(out)]) == 0
    assert "counted at factor 3, not 1" in capsys.readouterr().err
    assert json.loads((out / "graph.json").read_text())["transitions"] == "gmm"


def test_what_does_not_belong_together(setup, directories, tmp_path, capsys):
    gmm, ali = directories
    lang = setup["root"] / "lang"
    (ali / "ali.json").write_text(json.dumps({"num_pdfs": 7, "tree_hash": "x"}))
    assert main(["make-graph", "--ali-dir", str(ali), str(lang), str(gmm), str(tmp_path / "g")]) == 1
    assert "num_pdfs differs" in capsys.readouterr().err
    other = make_lang(tmp_path / "other", text=["a"])
    (other.path / "phones.txt").write_text((other.path / "phones.txt").read_text().replace("A_B", "Q_B"))
    assert main(["make-graph", str(other.path), str(gmm), str(tmp_path / "g")]) == 1
    assert "not the phones" in capsys.readouterr().err
    assert not (tmp_path / "g").exists()


def test_grammars_that_do_not_fit(setup, directories, tmp_path, capsys):
    gmm, _ = directories
    lang = make_lang(tmp_path / "l").path
    command = ["make-graph", str(lang), str(gmm), str(tmp_path / "g")]
    grammar = read_fst(lang / "G.fst")
    (lang / "G.fst").unlink()
    assert main(command) == 1
    assert "G.fst: missing; make it with 'essence make-grammar'" in capsys.readouterr().err
    grammar.olabel[grammar.olabel == 2] = 500
    write_fst(lang / "G.fst", grammar)
    assert main(command) == 1
    assert "has word-id 500, but words.txt ends at" in capsys.readouterr().err
    write_fst(lang / "G.fst", make_fst([0], [1], [1], [1], [0.0], [np.inf, np.inf]))  # nothing is final
    assert main(command) == 1
    assert "accept nothing together" in capsys.readouterr().err
    assert not (tmp_path / "g").exists()
