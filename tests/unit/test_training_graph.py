"""Training graphs and their best paths: against kaldi-hmm-gmm's compiler and aligner, and NumPy against the kernel."""
import numpy as np
import pytest
from builders.graphs import TEXT, make_lang, make_model, random_model, triphone_tree
from builders.kaldi_gmm import acoustic_model, graph_compiler, transition_model

from essence_kd.hmm.fst import read_fst, to_kaldifst
from essence_kd.hmm.gmm import Scorer
from essence_kd.hmm.training_graph import PhoneGraphs, StateGraphs
from essence_kd.hmm.transition_model import ContextStates
from essence_kd.hmm.viterbi import _best_path, best_path

SCALE, LOOP_SCALE = 1.0, 0.1


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    lang = make_lang(root)
    return dict(root=root, lang=lang, phones=PhoneGraphs(read_fst(root / "lang" / "L.fst")))


def graphs_of(model):
    return StateGraphs(ContextStates(model.tree, model.transitions), model.transitions, SCALE, LOOP_SCALE)


def word_ids(lang, text):
    return [lang.word_ids[word] for word in text.split()]


@pytest.mark.parametrize("text", TEXT)
def test_alignments_are_kaldis(setup, text):
    """The transition-ids and cost of the best path are those of Kaldi's own graph and decoder at a wide beam."""
    import kaldi_hmm_gmm as khg

    lang = setup["lang"]
    model = make_model(lang, seed=len(text))
    transitions, context = transition_model(model)
    lexicon = to_kaldifst(read_fst(setup["root"] / "lang" / "L.fst"))  # lives as long as the compiler
    compiler = graph_compiler(transitions, context, lexicon, lang.disambig)
    feats = np.random.default_rng(len(text)).normal(size=(90 + 3 * len(text), 6)).astype(np.float32)
    theirs = compiler.compile_graph_from_text(word_ids(lang, text))
    khg.add_transition_probs(transitions, lang.disambig, SCALE, LOOP_SCALE, theirs)
    acoustic = acoustic_model(model)  # lives as long as what scores with it
    decodable = khg.DecodableAmDiagGmmScaled(acoustic, transitions, feats, 1.0)
    config = khg.AlignConfig(beam=1000.0, retry_beam=0.0, careful=False)
    _, errors, _, like, _, tids, _ = khg.align_utterance_wrapper(config, "u", 1.0, theirs, decodable, 0, 0, 0, 0.0, 0)
    assert errors == 0

    graphs, phones = graphs_of(model), setup["phones"].make(word_ids(lang, text))
    graph = graphs.make(phones)
    path, cost = best_path(graph, Scorer(model).log_likelihoods(feats, graph.pdfs))
    assert graphs.transition_ids(phones, path).tolist() == list(tids)
    assert -cost == pytest.approx(like, rel=1e-4)


def test_triphones_know_their_neighbours(setup):
    """Every path's pdf-ids are those that the tree gives the path's phones, of which the words are pronounced."""
    lang = setup["lang"]
    model = random_model(lang, triphone_tree(lang), seed=3)
    graphs, rng = graphs_of(model), np.random.default_rng(0)
    silence = lang.phone_ids["SIL"]
    prons = {"red": ["R_B E_I D_E"], "read": ["R_B E_I D_E", "R_B I_I D_E"], "a": ["A_S"],
             "reader": ["R_B I_I D_I A_E"]}
    for text in ("a", "red a", "read reader a red"):
        phones = setup["phones"].make(word_ids(lang, text))
        graph = graphs.make(phones)
        for _ in range(20):
            path, _ = best_path(graph, rng.normal(size=(150, len(graph.pdfs))).astype(np.float32) * 4)
            tids = graphs.transition_ids(phones, path)
            columns = model.transitions
            first = np.flatnonzero(columns.begin[tids])
            said = columns.phone[tids[first]].tolist()
            spoken = " ".join(lang.phones[phone] for phone in said if phone != silence)
            assert spoken in {" ".join(x) for x in _products([prons[word] for word in text.split()])}
            token = np.searchsorted(first, np.arange(len(tids)), side="right") - 1
            window = np.array([[([0] + said)[n], said[n], (said + [0])[n + 1]] for n in token])
            assert np.array_equal(columns.pdf[tids], model.tree.pdfs(window, columns.state[tids]))
            assert np.array_equal(columns.pdf[tids], graph.pdfs[graph.pdf[path]])


def _products(choices):
    if not choices:
        return [[]]
    return [[one, *rest] for one in choices[0] for rest in _products(choices[1:])]


def test_the_kernel_and_numpy_agree(setup):
    lang, rng = setup["lang"], np.random.default_rng(1)
    model = random_model(lang, triphone_tree(lang), seed=5)
    graphs = graphs_of(model)
    for text in TEXT:
        graph = graphs.make(setup["phones"].make(word_ids(lang, text)))
        for frames in (1, 3, 20, 61):
            scores = rng.normal(size=(frames, len(graph.pdfs))).astype(np.float32)
            ours, reference = best_path(graph, scores), _best_path(graph, scores)
            assert (ours is None) == (reference is None)
            if ours is not None:
                assert np.array_equal(ours[0], reference[0]) and ours[1] == pytest.approx(reference[1], abs=1e-9)


def test_every_frame_counts_once(setup):
    """The shortest utterance has one frame per state; a frame less has no path."""
    lang = setup["lang"]
    graphs = graphs_of(make_model(lang))
    graph = graphs.make(setup["phones"].make(word_ids(lang, "a red")))
    least = 3 * 4  # A, R E D
    assert best_path(graph, np.zeros((least, len(graph.pdfs)), np.float32)) is not None
    assert best_path(graph, np.zeros((least - 1, len(graph.pdfs)), np.float32)) is None
    assert best_path(graph, np.zeros((0, len(graph.pdfs)), np.float32)) is None


def test_words_that_the_lexicon_lacks_have_no_graph(setup):
    assert setup["phones"].make([10 ** 6]) is None
