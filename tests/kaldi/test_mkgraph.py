"""Our graph against that of Kaldi's utils/mkgraph.sh, from the same lang and model; needs a compiled Kaldi."""
import numpy as np
import pytest
from builders.decoding import decode, read_hyp, write
from builders.graphs import make_lang, make_model, paths_agree, scores_of, wander
from graph_building import MKGRAPH_NEEDS, mkgraph

from essence_kd.hmm import graph as R
from essence_kd.hmm.gmm import save_gmm
from essence_kd.hmm.hclg import import_graph

pytestmark = pytest.mark.kaldi(*MKGRAPH_NEEDS)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """The native graph and Kaldi's, imported, both at 10 ms."""
    root = tmp_path_factory.mktemp("mkgraph")
    lang = make_lang(root)
    model = make_model(lang)
    save_gmm(root / "gmm", model)
    mkgraph(root / "lang", root / "gmm", root / "kaldi" / "graph")
    theirs = import_graph(root / "kaldi" / "graph" / "HCLG.fst", root / "gmm" / "final.mdl",
                          root / "kaldi" / "graph" / "words.txt")
    ours = R.make_graph(root / "lang", root / "gmm", factor=1)
    R.write_graph_dir(root / "ours", ours)
    R.write_graph_dir(root / "theirs", theirs)
    return root, ours, theirs


def test_same_words_and_costs_on_the_same_paths(graphs):
    """Paths of either graph, and label sequences that may be of neither: both give the same words and cost, or none."""
    _, ours, theirs = graphs
    assert paths_agree(ours, theirs, 90, 5e-3) > 40  # Kaldi rounds weights to 1/1024 on its way


def test_same_hypotheses(graphs, tmp_path):
    root, ours, _ = graphs
    rng = np.random.default_rng(1)
    write(tmp_path / "s", {f"u{i:02d}": scores_of(ours, wander(ours, rng), rng, strength=2.0) for i in range(25)})
    for name in ("ours", "theirs"):
        assert decode("--acoustic-scale", 1, "--beam", 60, "--max-active", 1000000, root / name,
                      f"ark:{tmp_path}/s.ark", tmp_path / name) == 0
    hyps = [read_hyp(tmp_path / name) for name in ("ours", "theirs")]
    assert hyps[0] == hyps[1] and sum(map(len, hyps[0].values())) > 40
    times = [(tmp_path / name / "hyp.ctm").read_text() for name in ("ours", "theirs")]
    assert times[0] == times[1]
