"""The native engine's GMMs against Kaldi's programs: trees, transforms, and that a GMM directory is one of Kaldi's."""
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from builders import ROOT
from builders.gmm_corpus import make_dict, synthesise, write_data
from builders.graphs import paths_agree
from graph_building import MKGRAPH_NEEDS, kaldi_environment, mkgraph

from essence_kd.hmm import graph as R
from essence_kd.hmm import lang as L
from essence_kd.hmm import lm
from essence_kd.hmm.alignment_dir import tree_hash
from essence_kd.hmm.feature_transforms import estimate_lda, estimate_mllt, read_matrix
from essence_kd.hmm.fst import write_fst
from essence_kd.hmm.gmm import load_gmm
from essence_kd.hmm.gmm_alignment import ACOUSTIC_SCALE, SELF_LOOP_SCALE, TRANSITION_SCALE, Aligner
from essence_kd.hmm.gmm_features import FeatureReader, read_transcripts
from essence_kd.hmm.gmm_training import TrainOptions, train
from essence_kd.hmm.hclg import import_graph
from essence_kd.hmm.kaldi_objects import BinaryReader
from essence_kd.hmm.tree import read_tree, tree_bytes
from essence_kd.hmm.tree_building import TreeOptions, TreeStats, build_tree, log_likelihood
from essence_kd.io.tables import MatrixWriter, read_int_vectors, read_matrices

BINS = [f"src/bin/{name}" for name in (
    "acc-tree-stats", "build-tree", "compile-questions", "tree-info", "ali-to-phones", "ali-to-post", "acc-lda",
    "est-lda", "est-mllt", "weight-silence-post", "compile-train-graphs", "copy-tree")]
BINS += [f"src/gmmbin/{name}" for name in (
    "gmm-info", "gmm-acc-mllt", "gmm-est-fmllr", "gmm-align-compiled", "gmm-latgen-faster")]
BINS += ["src/featbin/transform-feats", "src/featbin/splice-feats", "src/featbin/apply-cmvn",
         "src/latbin/lattice-best-path"]
pytestmark = pytest.mark.kaldi(*BINS, *MKGRAPH_NEEDS)


def kaldi(command, cwd):
    """What a shell command of Kaldi's programs prints."""
    root = Path(os.environ["KALDI_ROOT"])
    folders = [str(root / "src" / name) for name in ("bin", "gmmbin", "featbin", "latbin", "fstbin")]
    env = {**kaldi_environment(), "PATH": os.pathsep.join([*folders, os.environ["PATH"]])}
    done = subprocess.run(["bash", "-ec", f"set -o pipefail; {command}"], cwd=cwd, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return done.stdout.decode("utf-8", "replace")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus, its lang with a grammar, and models of every kind that native training leaves."""
    root = tmp_path_factory.mktemp("native")
    feats, text, speakers, _ = synthesise(np.random.default_rng(0), 60)
    lang = L.prepare_lang(make_dict(root / "dict"), root / "lang")
    write_data(root / "data", feats, text, speakers)
    grammar, _ = lm.make_grammar(lm.estimate([line.split() for line in text.values()], 2), lang.words)
    write_fst(root / "lang" / "G.fst", grammar)
    (root / "spk2utt").write_text("".join(f"{spk} {' '.join(u for u in sorted(feats) if speakers[u] == spk)}\n"
                                          for spk in sorted(set(speakers.values()))))
    for kind in ("mono", "tri1", "tri2", "tri3"):
        train(root / "data", root / "lang", TrainOptions(
            kind=kind, num_leaves=80, num_gauss=150, mono_gauss=60, mono_iters=12, num_iters=14, lda_dim=20, seed=2),
            root / kind)
    return root, lang


def aligner_of(root, lang, model, kind=None):
    """The training data held by an Aligner, aligned with a model; kind: as the training of that kind left them."""
    reader = FeatureReader(root / "data")
    words = read_transcripts(root / "data", reader.utts, lang, False)
    aligner = Aligner(str(root / "data"), str(root / "lang"), reader.utts, words, True)
    aligner.set_features(model.features)
    aligner.use(model)
    assert aligner.align(model) == []
    for utt, tids in read_int_vectors(f"ark:gunzip -c {root}/{kind}/ali.1.gz |") if kind else ():
        aligner.tids[aligner.span[utt]] = tids
    return aligner


def features(root, kind, out):
    """The features that a model of this kind sees, without adaptation, as an archive."""
    model = load_gmm(root / kind)
    reader = FeatureReader(root / "data", model.features, model.dim)
    with MatrixWriter(f"ark:{out}") as writer:
        for utt in reader.utts:
            writer.write(utt, reader[utt])
    return reader


def read_tree_stats(path):
    """What acc-tree-stats wrote."""
    reader, events, rows = BinaryReader(path.read_bytes()), [], []
    assert reader.token() == "BTS"
    for _ in range(reader.integer()):
        assert reader.token() == "EV"
        event = {reader.integer(): reader.integer() for _ in range(reader.integer())}
        events.append([event[-1], event.get(0, -1), event[1], event.get(2, -1)])
        assert reader.token() == "TGCL"  # T: there are statistics
        count = reader._number("<d", 8)
        reader._number("<d", 8)
        rows.append(np.append(count, reader.matrix().ravel()))
    rows = np.array(rows)
    dim = (rows.shape[1] - 1) // 2
    return TreeStats(np.array(events, np.int32), rows[:, 0], rows[:, 1:1 + dim], rows[:, 1 + dim:])


def likelihood(tree, stats):
    """Log-likelihood of the frames, each pdf with a Gaussian of its own."""
    sums = np.zeros((tree.num_pdfs, stats.rows().shape[1]))
    np.add.at(sums, tree.pdfs(stats.events[:, 1:], stats.events[:, 0]), stats.rows())
    return log_likelihood(sums).sum()


@pytest.mark.parametrize("leaves", [10, 60, 2000])
def test_tree_is_that_of_build_tree(corpus, tmp_path, leaves):
    """From the same statistics and questions the same tree, to the byte; and our statistics are Kaldi's."""
    root, lang = corpus
    features(root, "mono", tmp_path / "f.ark")
    independent = ":".join(map(str, lang.silence))
    aligner = aligner_of(root, lang, load_gmm(root / "mono"))
    (tmp_path / "ali.txt").write_text("".join(f"{utt} {' '.join(map(str, tids))}\n"
                                              for utt, tids in aligner.transition_ids().items()))
    kaldi(f"acc-tree-stats --ci-phones={independent} {root}/mono/final.mdl ark:f.ark ark:ali.txt acc", tmp_path)
    theirs = read_tree_stats(tmp_path / "acc")
    ours = aligner.tree_statistics(lang.silence)
    order = np.lexsort(theirs.events.T[::-1])
    assert np.array_equal(ours.events, theirs.events[order]) and np.array_equal(ours.count, theirs.count[order])
    np.testing.assert_allclose(ours.second, theirs.second[order], rtol=1e-4, atol=1e-2)

    roots, extra, _ = L.read_roots(lang)
    questions = [sorted(line) for line in lang.sets] + extra
    (tmp_path / "q.int").write_text("".join(" ".join(map(str, line)) + "\n" for line in questions))
    kaldi(f"compile-questions {root}/lang/topo q.int q.qst; build-tree --max-leaves={leaves} --cluster-thresh=-1 "
          f"--thresh=30 acc {root}/lang/phones/roots.int q.qst {root}/lang/topo tree; "
          "copy-tree --binary=false tree tree.txt", tmp_path)
    sizes = {phone: len(states) for phone, states in lang.topo.items()}
    tree = build_tree(theirs, questions, roots, sizes, TreeOptions(max(leaves, len(roots)), 30.0))
    found = read_tree(tmp_path / "tree")
    assert found == read_tree(tmp_path / "tree.txt") and tree.num_pdfs > 10 * (leaves > 10)
    assert tree_bytes(found) == (tmp_path / "tree").read_bytes()
    if leaves < 2000:
        assert tree == found
    else:  # so far down, Kaldi's float32 decides otherwise between splits that gain the same
        gains = [likelihood(one, theirs) for one in (tree, found)]
        assert tree.num_pdfs == found.num_pdfs and gains[0] == pytest.approx(gains[1], rel=1e-4)


def test_lda_and_mllt_are_kaldis(corpus, tmp_path):
    root, lang = corpus
    before, model = load_gmm(root / "tri1"), load_gmm(root / "tri2")
    silence = ":".join(map(str, lang.silence))
    cmvn = f"apply-cmvn --utt2spk=ark:{root}/data/utt2spk scp:{root}/data/cmvn.scp scp:{root}/data/feats.scp ark:-"
    posts = (f"ali-to-post 'ark:gunzip -c {root}/{{0}}/ali.1.gz |' ark:- | weight-silence-post 0.0 {silence} "
             f"{root}/{{0}}/final.mdl ark:- ark:post")
    kaldi(posts.format("tri1") + f"; {cmvn} | splice-feats --left-context=3 --right-context=3 ark:- ark:- | "
          f"acc-lda --rand-prune=0 {root}/tri1/final.mdl ark:- ark:post lda.acc; est-lda --dim=15 lda.mat lda.acc",
          tmp_path)
    theirs = read_matrix(tmp_path / "lda.mat")
    aligner = aligner_of(root, lang, before, "tri1")
    ours = estimate_lda(aligner.lda_statistics(before, 3, 3), 15)
    theirs = theirs * np.sign((theirs * ours).sum(axis=1))[:, None]  # a direction has no sign
    np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.02 * np.abs(theirs).max())

    reader = features(root, "tri2", tmp_path / "f.ark")
    assert len(reader.utts) == 60
    kaldi(posts.format("tri2") + f"; gmm-acc-mllt --rand-prune=0 {root}/tri2/final.mdl ark:f.ark ark:post m.acc; "
          "est-mllt m.mat m.acc", tmp_path)
    aligner = aligner_of(root, lang, model, "tri2")
    np.testing.assert_allclose(estimate_mllt(*aligner.mllt_statistics(model)), read_matrix(tmp_path / "m.mat"),
                               atol=2e-3)


def test_fmllr_is_kaldis(corpus, tmp_path):
    root, lang = corpus
    model = load_gmm(root / "tri2")
    features(root, "tri2", tmp_path / "f.ark")
    aligner = aligner_of(root, lang, model, "tri2")
    assert aligner.adapt_speakers(model) == 0
    ours = aligner.speaker_transforms()
    kaldi(f"ali-to-post 'ark:gunzip -c {root}/tri2/ali.1.gz |' ark:- | weight-silence-post 0.0 "
          f"{':'.join(map(str, lang.silence))} {root}/tri2/final.mdl ark:- ark:- | gmm-est-fmllr "
          f"--fmllr-update-type=full --spk2utt=ark:{root}/spk2utt {root}/tri2/final.mdl ark:f.ark ark:- ark:trans",
          tmp_path)
    theirs = dict(read_matrices(f"ark:{tmp_path}/trans"))
    assert set(ours) == set(theirs) and len(ours) == 3
    for speaker, transform in ours.items():
        np.testing.assert_allclose(transform, theirs[speaker], atol=5e-3)


@pytest.mark.parametrize("kind", ["mono", "tri1", "tri2", "tri3"])
def test_kaldi_reads_the_directory(corpus, tmp_path, kind):
    """Kaldi's programs say of tree, final.mdl and ali.1.gz what we do, and align the same features to the same ids."""
    root, lang = corpus
    model = load_gmm(root / kind)
    about = kaldi(f"gmm-info {root}/{kind}/final.mdl; tree-info {root}/{kind}/tree", tmp_path)
    assert f"number of pdfs {model.num_pdfs}\n" in about and f"num-pdfs {model.num_pdfs}\n" in about
    assert f"number of transition-ids {model.transitions.num_ids}\n" in about
    assert f"number of gaussians {len(model.weights)}\n" in about and f"feature dimension {model.dim}\n" in about
    phones = kaldi(f"ali-to-phones {root}/{kind}/final.mdl 'ark:gunzip -c {root}/{kind}/ali.1.gz |' ark,t:-", tmp_path)
    words = {utt: text for utt, *text in map(str.split, (root / "data" / "text").read_text().splitlines())}
    lexicon = dict(line.split(maxsplit=1) for line in (root / "dict" / "lexicon.txt").read_text().splitlines())
    for line in phones.splitlines():
        utt, *ids = line.split()
        said = [lang.phones[int(i)].split("_")[0] for i in ids if int(i) not in lang.silence]
        assert " ".join(said) == " ".join(lexicon[word] for word in words[utt])

    features(root, kind, tmp_path / "f.ark")
    ids = {utt: " ".join(str(lang.word_ids[word]) for word in text) for utt, text in words.items()}
    (tmp_path / "words.int").write_text("".join(f"{utt} {line}\n" for utt, line in sorted(ids.items())))
    mdl = root / kind / ("final.alimdl" if kind == "tri3" else "final.mdl")
    kaldi(f"compile-train-graphs --read-disambig-syms={root}/lang/phones/disambig.int {root}/{kind}/tree {mdl} "
          f"{root}/lang/L.fst ark:words.int ark:- | gmm-align-compiled --transition-scale={TRANSITION_SCALE} "
          f"--acoustic-scale={ACOUSTIC_SCALE} --self-loop-scale={SELF_LOOP_SCALE} --beam=200 {mdl} ark:- ark:f.ark "
          "ark:ali", tmp_path)
    aligner = aligner_of(root, lang, model.speaker_independent or model)
    theirs = dict(read_int_vectors(f"ark:{tmp_path}/ali"))
    ours = aligner.transition_ids()
    assert set(ours) == set(theirs)
    same = np.concatenate([ours[utt] == theirs[utt] for utt in ours])
    assert same.mean() > 0.999  # float32 and float64 may decide otherwise where two paths cost the same


def test_the_plugin_takes_the_directory(corpus, tmp_path):
    """The alignments that training leaves are imported as those of a Kaldi recipe are: the same pdf-ids and tree."""
    root, _ = corpus
    script = tmp_path / "import.sh"
    script.write_text(f"nj=1\n. {ROOT}/recipes/plugin/common.sh\nimport_ali {root}/data {root}/tri2 {tmp_path}/ali 1\n")
    kaldi(f"bash {script}", tmp_path)
    model = load_gmm(root / "tri2")
    tids = dict(read_int_vectors(f"ark:gunzip -c {root}/tri2/ali.1.gz |"))
    found = dict(read_int_vectors(f"scp:{tmp_path}/ali/ali.scp"))
    assert set(found) == set(tids)
    for utt, pdfs in found.items():
        np.testing.assert_array_equal(pdfs, model.transitions.pdf[tids[utt]])
    assert int((tmp_path / "ali" / "num_pdfs").read_text()) == model.num_pdfs
    assert tree_hash(tmp_path / "ali") is not None


@pytest.mark.parametrize("kind", ["mono", "tri2"])
def test_same_words_and_costs_as_mkgraph(corpus, tmp_path, kind):
    root, lang = corpus
    mkgraph(root / "lang", root / kind, tmp_path / "graph")
    theirs = import_graph(tmp_path / "graph" / "HCLG.fst", root / kind / "final.mdl", tmp_path / "graph" / "words.txt")
    ours = R.make_graph(root / "lang", root / kind, factor=1)
    assert paths_agree(ours, theirs, 60, 1e-2) > 25
