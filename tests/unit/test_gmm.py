"""GMM training and alignment: formulas against kaldi-hmm-gmm, and a corpus whose true alignment is known."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders.gmm_corpus import WORDS, make_dict, synthesise, write_data
from builders.kaldi_gmm import acoustic_model, quiet, transition_model

from essence_kd.cli.main import main
from essence_kd.hmm import lang as L
from essence_kd.hmm.feature_transforms import add_deltas, write_matrix
from essence_kd.hmm.gmm import Gmm, load_gmm
from essence_kd.hmm.gmm_alignment import SubsampledCounts, align
from essence_kd.hmm.gmm_estimation import Frames, _update_transitions, accumulate, mix_up, update
from essence_kd.hmm.gmm_features import FeatureReader
from essence_kd.hmm.gmm_kinds import KINDS
from essence_kd.hmm.gmm_training import TrainOptions, train
from essence_kd.hmm.transition_model import TransitionModel
from essence_kd.hmm.tree import monophone_tree, write_tree
from essence_kd.io.tables import IntVectorTable, MatrixTable, MatrixWriter, read_matrices

@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("gmm")
    feats, text, speakers, truth = synthesise(np.random.default_rng(0), 60)
    L.prepare_lang(make_dict(root / "dict"), root / "lang")
    write_data(root / "data", feats, text, speakers)
    options = TrainOptions(kind="mono", mono_gauss=120, mono_iters=14, seed=2)
    model = train(root / "data", root / "lang", options, root / "gmm")
    total, failed = align(root / "data", root / "lang", model, root / "ali", nj=1)
    return dict(root=root, model=model, truth=truth, options=options, total=total, failed=failed,
                lang=L.load_lang(root / "lang"), feats=feats, text=text, speakers=speakers)


# ----------------------------------------------------------------------------------------------------------- formulas

def test_deltas_by_definition():
    rng = np.random.default_rng(0)
    for frames in (1, 2, 3, 9, 40):
        x = rng.normal(size=(frames, 4)).astype(np.float32)
        out = add_deltas(x, np.zeros(frames, int), np.full(frames, frames - 1))
        def at(t):
            return x[min(max(t, 0), frames - 1)].astype(np.float64)
        for t in range(frames):
            first = sum(n * at(t + n) for n in range(-2, 3)) / 10
            second = sum(n * m * at(t + n + m) for n in range(-2, 3) for m in range(-2, 3)) / 100
            np.testing.assert_allclose(out[t], np.concatenate([x[t], first, second]), atol=1e-5)


def random_model(lang, rng, max_gauss=4):
    tree = monophone_tree(lang.sets, {phone: len(states) for phone, states in lang.topo.items()})
    pdfs = tree.num_pdfs
    sizes = rng.integers(1, max_gauss + 1, pdfs)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    owner = np.repeat(np.arange(pdfs), sizes)
    weights = rng.random(offsets[-1]) + 0.2
    weights /= np.bincount(owner, weights=weights)[owner]
    return Gmm(lang.phones, tree, TransitionModel.of_tree(tree, lang.topo), offsets, weights,
               rng.normal(size=(offsets[-1], 6)), rng.random((offsets[-1], 6)) + 0.3)


def frames_of(model, feats, pdfs):
    """Frames aligned to pdf-ids, each with the first transition-id that has its pdf-id."""
    first = {pdf: tid for tid, pdf in reversed(list(enumerate(model.transitions.pdf.tolist()))) if tid}
    return Frames.of(feats, np.array([first[pdf] for pdf in pdfs.tolist()]), model.transitions)


def test_transition_ids_are_kaldis(corpus):
    model = corpus["model"].transitions
    theirs, _ = transition_model(corpus["model"])
    assert theirs.num_transition_ids == model.num_ids
    for tid in range(1, model.num_ids + 1):
        assert theirs.transition_id_to_phone(tid) == model.phone[tid]
        assert theirs.transition_id_to_pdf(tid) == model.pdf[tid]
        assert theirs.is_self_loop(tid) == bool(model.loop[tid])
    probs = np.exp(np.array(list(theirs.log_probs)))
    np.testing.assert_allclose(probs[1:], model.probs[1:], rtol=1e-3)


def test_likelihoods_and_statistics_are_kaldis(corpus):
    import kaldi_hmm_gmm as khg

    rng = np.random.default_rng(1)
    model = random_model(corpus["lang"], rng)
    theirs = acoustic_model(model)
    feats = rng.normal(size=(300, 6)).astype(np.float32) * 1.5
    ours = model.log_likelihoods(feats)
    assert ours.shape == (300, model.num_pdfs) and ours.dtype == np.float32
    for t in range(0, 300, 37):
        for pdf in range(model.num_pdfs):
            assert ours[t, pdf] == pytest.approx(theirs.log_likelihood(pdf, feats[t]), abs=2e-3)
    pdfs = rng.integers(0, model.num_pdfs, 300).astype(np.int32)
    stats = accumulate(model, frames_of(model, feats, pdfs))
    acc = khg.AccumAmDiagGmm()
    acc.init(theirs, 15)
    total = sum(acc.accumulate_for_gmm(theirs, feats[t], int(pdfs[t]), 1.0) for t in range(300))
    assert stats.log_likelihood == pytest.approx(total, rel=1e-4)
    for pdf in range(model.num_pdfs):
        own = slice(model.offsets[pdf], model.offsets[pdf + 1])
        a = acc.get_acc(pdf)
        np.testing.assert_allclose(stats.occupancy[own], np.array(a.occupancy), atol=1e-3)
        np.testing.assert_allclose(stats.first[own], np.array(a.mean_accumulator), atol=1e-2)
        np.testing.assert_allclose(stats.second[own], np.array(a.variance_accumulator), atol=1e-2)


def test_update_is_kaldis(corpus):
    import kaldi_hmm_gmm as khg

    rng = np.random.default_rng(2)
    model = random_model(corpus["lang"], rng)
    theirs = acoustic_model(model)
    pdfs = np.sort(rng.integers(0, model.num_pdfs // 2, 1500)).astype(np.int32)  # half of the pdfs see nothing
    feats = (rng.normal(size=(1500, 6)) + 0.1 * pdfs[:, None]).astype(np.float32)
    acc = khg.AccumAmDiagGmm()
    acc.init(theirs, 15)
    for t in range(len(feats)):
        acc.accumulate_for_gmm(theirs, feats[t], int(pdfs[t]), 1.0)
    with quiet():
        khg.mle_am_diag_gmm_update(khg.MleDiagGmmOptions(), acc, 15, theirs)
    update(model, accumulate(model, frames_of(model, feats, pdfs)))
    assert theirs.num_gauss == len(model.weights) < 4 * model.num_pdfs
    for pdf in range(model.num_pdfs):
        own = slice(model.offsets[pdf], model.offsets[pdf + 1])
        diag = theirs.get_pdf(pdf)
        np.testing.assert_allclose(np.array(diag.weights), model.weights[own], rtol=1e-3)
        np.testing.assert_allclose(np.array(diag.means), model.means[own], atol=2e-3)
        np.testing.assert_allclose(np.array(diag.vars), model.variances[own], rtol=2e-2, atol=1e-3)


def test_transition_update_is_kaldis(corpus):
    import kaldi_hmm_gmm as khg

    model = random_model(corpus["lang"], np.random.default_rng(3))
    transitions, _ = transition_model(model)
    counts = np.random.default_rng(4).integers(0, 60, len(model.transitions.probs)).astype(np.float64)
    counts[0] = 0
    counts[1:60] = 0  # states without data keep what they had
    with quiet():
        transitions.mle_update(counts, khg.MleTransitionUpdateConfig())
    _update_transitions(model, counts)
    theirs = np.exp(np.array(list(transitions.log_probs)))
    np.testing.assert_allclose(model.transitions.probs[1:], theirs[1:], rtol=2e-3)


def test_mixing_up_is_kaldis(corpus):
    model = random_model(corpus["lang"], np.random.default_rng(5), max_gauss=1)
    theirs = acoustic_model(model)
    occupancy = np.random.default_rng(6).gamma(0.7, 400, model.num_pdfs)
    with quiet():
        theirs.split_by_count(occupancy.astype(np.float32), 200, 0.01, 0.25, 20.0)
    before = model.means.copy()
    mix_up(model, occupancy, 200, np.random.default_rng(0))
    sizes = np.diff(model.offsets)
    assert sizes.tolist() == [theirs.num_gauss_in_pdf(pdf) for pdf in range(model.num_pdfs)]
    assert len(model.weights) == 200 == len(model.means) == len(model.variances)
    owner = np.repeat(np.arange(model.num_pdfs), sizes)
    np.testing.assert_allclose(np.bincount(owner, weights=model.weights), 1.0)
    centre = np.stack([np.bincount(owner, weights=model.weights * model.means[:, d]) for d in range(6)], axis=1)
    np.testing.assert_allclose(centre, before, atol=0.05)  # the halves move apart symmetrically
    assert np.abs(model.means - before[owner]).max() > 0.001


# ----------------------------------------------------------------------------------------------------- known alignment

def test_training_finds_the_truth(corpus):
    """From a flat start, without a single time mark, nearly every frame gets its true phone."""
    assert (corpus["total"], corpus["failed"]) == (60, 0)
    tree = [line.split() for line in (corpus["root"] / "ali" / "tree.txt").read_text().splitlines()]
    of_pdf = {int(pdf): phone.split("_")[0] for pdf, phone, _ in tree}
    table = IntVectorTable(str(corpus["root"] / "ali" / "ali.scp"))
    right = []
    for utt, labels in corpus["truth"].items():
        assert len(table[utt]) == len(labels)
        right += [of_pdf[int(pdf)] == phone for pdf, (phone, _) in zip(table[utt], labels)]
    assert np.mean(right) > 0.97  # of so few utterances some flat starts end at 0.9


def test_what_alignment_leaves(corpus):
    ali = corpus["root"] / "ali"
    pdfs = int((ali / "num_pdfs").read_text())
    assert pdfs == corpus["model"].num_pdfs
    priors = np.loadtxt(ali / "priors.txt")
    counts = np.zeros(pdfs)
    table = IntVectorTable(str(ali / "ali.scp"))
    for utt in table:
        counts += np.bincount(table[utt], minlength=pdfs)
    np.testing.assert_allclose(priors, counts / counts.sum(), atol=1e-8)
    assert (ali / "failed.txt").read_text() == ""
    about = json.loads((ali / "ali.json").read_text())
    assert about["num_pdfs"] == pdfs and about["num_frames"] == counts.sum() and about["failed"] == 0
    assert about["tree_hash"] == json.loads((corpus["root"] / "gmm" / "gmm.json").read_text())["tree_hash"]
    assert (ali / "tree.txt").read_text() == (corpus["root"] / "gmm" / "tree.txt").read_text()


def test_two_processes_give_the_same(corpus, tmp_path):
    options = TrainOptions(**{**vars(corpus["options"]), "nj": 2})
    model = train(corpus["root"] / "data", corpus["root"] / "lang", options)
    assert model.num_pdfs == corpus["model"].num_pdfs
    name = "log_likelihood_per_frame"
    assert model.meta[name] == pytest.approx(corpus["model"].meta[name], abs=0.05)
    align(corpus["root"] / "data", corpus["root"] / "lang", corpus["model"], tmp_path / "ali", nj=2)
    one, two = (IntVectorTable(str(path / "ali.scp")) for path in (corpus["root"] / "ali", tmp_path / "ali"))
    assert list(one) == list(two)
    assert all(np.array_equal(one[utt], two[utt]) for utt in one)
    assert SubsampledCounts.load(tmp_path / "ali" / "topology.npz").enter.sum() > 0


def test_training_twice_gives_the_same_bytes(corpus):
    options = TrainOptions(kind="tri3", num_leaves=60, mono_iters=5, num_iters=5)
    models = [train(corpus["root"] / "data", corpus["root"] / "lang", options) for _ in range(2)]
    for name in ("weights", "means", "variances", "tree"):
        assert np.array_equal(getattr(models[0], name), getattr(models[1], name)), name
    assert np.array_equal(models[0].transitions.probs, models[1].transitions.probs)


def test_reload(corpus, tmp_path):
    model, back = corpus["model"], load_gmm(corpus["root"] / "gmm")
    feats = FeatureReader(corpus["root"] / "data")["spk0-0000"]
    np.testing.assert_allclose(back.log_likelihoods(feats), model.log_likelihoods(feats), atol=1e-2)
    assert back.tree == model.tree and back.phones == model.phones
    assert np.array_equal(back.transitions.tuples, model.transitions.tuples)
    align(corpus["root"] / "data", corpus["root"] / "lang", back, tmp_path / "ali")
    one, two = (IntVectorTable(str(path / "ali.scp")) for path in (corpus["root"] / "ali", tmp_path / "ali"))
    same = np.concatenate([one[utt] == two[utt] for utt in one])
    assert same.mean() > 0.999


def test_subsampled_counts(corpus):
    """Every phase of every utterance is a chain of phones: what enters leaves, and all kept frames are counted."""
    counts = SubsampledCounts.load(corpus["root"] / "ali" / "topology.npz")
    frames = json.loads((corpus["root"] / "ali" / "ali.json").read_text())["num_frames"]
    assert counts.factor == 3
    assert counts.enter.sum() + counts.stay.sum() == frames
    assert counts.leave.sum() + counts.stay.sum() == frames
    assert counts.enter.sum() == counts.leave.sum() > 0
    row = 0
    for phone in sorted(corpus["lang"].topo):
        for state in range(len(corpus["lang"].topo[phone])):
            if phone in corpus["lang"].nonsilence:
                assert counts.stay[row, :state].sum() == 0  # left to right
            row += 1


def test_subsampled_counts_by_hand(corpus):
    lang = corpus["lang"]
    a, p = lang.phone_ids["A_B"], lang.phone_ids["P_E"]
    states = [(a, 0), (a, 1), (a, 1), (a, 2), (p, 0), (p, 1), (p, 2), (p, 2)]
    counts = SubsampledCounts.empty(corpus["model"].transitions, 3)
    row = {key: n for n, key in enumerate(lang.phone_and_state())}
    begin = [n in (0, 4) for n in range(len(states))]
    counts.add(np.array(begin), np.array([row[key] for key in states]), np.array([state for _, state in states]))
    # phases: a0 a2 p2 | a1 p0 p2 | a1 p1
    expected = {("enter", a, 0): 1, ("enter", a, 1): 2, ("leave", a, 2): 1, ("leave", a, 1): 2, ("enter", p, 2): 1,
                ("enter", p, 0): 1, ("enter", p, 1): 1, ("leave", p, 2): 2, ("leave", p, 1): 1}
    for (kind, phone, state), n in expected.items():
        assert getattr(counts, kind)[row[phone, state]] == n, (kind, phone, state)
    assert counts.stay[row[a, 0], 2] == 1 and counts.stay[row[p, 0], 2] == 1 and counts.stay.sum() == 2


def test_scores(corpus, tmp_path):
    out = tmp_path / "s"
    data, gmm = str(corpus["root"] / "data"), str(corpus["root"] / "gmm")
    assert main(["gmm-scores", data, gmm, f"ark,scp:{out}.ark,{out}.scp"]) == 0
    scores = MatrixTable(f"{out}.scp")
    reader = FeatureReader(corpus["root"] / "data")
    assert list(scores) == reader.utts
    about = json.loads(Path(f"{out}.json").read_text())
    assert (about["kind"], about["num_pdfs"], about["frame_shift_ms"]) == ("scores", corpus["model"].num_pdfs, 30)
    model = load_gmm(corpus["root"] / "gmm")
    for utt in reader.utts[:5]:
        full = model.log_likelihoods(reader[utt])
        assert scores[utt].shape == (-(-len(full) // 3), model.num_pdfs)
        np.testing.assert_allclose(scores[utt], full[::3], atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- bad input

def broken(corpus, path, change):
    """A copy of the data with something wrong."""
    feats, text, speakers = (dict(corpus[name]) for name in ("feats", "text", "speakers"))
    change(feats, text, speakers)
    return write_data(path, feats, text, speakers)


def test_short_utterances_are_counted(corpus, tmp_path, capsys):
    def cut(feats, text, speakers):
        feats["spk0-0000"] = feats["spk0-0000"][:5]
        feats["spk1-0001"] = feats["spk1-0001"][:0]
    data = broken(corpus, tmp_path / "data", cut)
    gmm, lang = str(corpus["root"] / "gmm"), str(corpus["root"] / "lang")
    assert main(["gmm-align", str(data), lang, gmm, str(tmp_path / "ali")]) == 0
    assert "58 of 60 utterances aligned, 2 failed" in capsys.readouterr().out
    assert (tmp_path / "ali" / "failed.txt").read_text() == "spk0-0000\nspk1-0001\n"
    table = IntVectorTable(str(tmp_path / "ali" / "ali.scp"))
    assert len(table) == 58 and "spk0-0000" not in table
    assert main(["gmm-train", "--kind", "mono", "--mono-iters", "4", "--mono-gauss", "60", str(data), lang,
                 str(tmp_path / "gmm")]) == 0
    assert "60 utterances of which 2 failed" in capsys.readouterr().out


def test_too_many_failures_are_an_error(corpus, tmp_path, capsys):
    def cut(feats, text, speakers):
        for utt in sorted(feats)[:10]:
            feats[utt] = feats[utt][:5]
    data = broken(corpus, tmp_path / "data", cut)
    lang = str(corpus["root"] / "lang")
    assert main(["gmm-align", str(data), lang, str(corpus["root"] / "gmm"), str(tmp_path / "ali")]) == 1
    assert "10 of 60 utterances could not be aligned (first: spk0-0000)" in capsys.readouterr().err
    assert not (tmp_path / "ali" / "ali.scp").exists()
    assert len((tmp_path / "ali" / "failed.txt").read_text().split()) == 10
    assert main(["gmm-train", str(data), lang, str(tmp_path / "gmm")]) == 1
    assert "10 of 60 utterances are too short" in capsys.readouterr().err
    assert not (tmp_path / "gmm").exists()


@pytest.mark.parametrize("nj", ["1", "2"])
@pytest.mark.parametrize("change, told", [
    (lambda f, t, s: t.update({"spk0-0000": "ape zebra"}), "text: spk0-0000 has the word 'zebra'"),
    (lambda f, t, s: f.update({"spk0-0000": f["spk0-0000"][:, :12], "spk1-0001": f["spk1-0001"]}), None),
])
def test_bad_words_and_dimensions(corpus, tmp_path, capsys, nj, change, told):
    if told is None:  # one utterance of another dimension than its statistics
        data = broken(corpus, tmp_path / "data", lambda f, t, s: None)
        with MatrixWriter(f"ark,scp:{tmp_path}/x.ark,{tmp_path}/x.scp") as writer:
            writer.write("spk0-0000", corpus["feats"]["spk0-0000"][:, :12])
        lines = (data / "feats.scp").read_text().splitlines()
        lines[0] = (tmp_path / "x.scp").read_text().strip()
        (data / "feats.scp").write_text("\n".join(lines) + "\n")
        told = "feats.scp: utterance spk0-0000 has dimension 12"
    else:
        data = broken(corpus, tmp_path / "data", change)
    lang, gmm = str(corpus["root"] / "lang"), str(corpus["root"] / "gmm")
    assert main(["gmm-train", "--nj", nj, str(data), lang, str(tmp_path / "gmm")]) == 1
    assert told in capsys.readouterr().err
    assert main(["gmm-align", "--nj", nj, str(data), lang, gmm, str(tmp_path / "ali")]) == 1
    assert told in capsys.readouterr().err


def test_unknown_words_can_be_mapped(corpus, tmp_path, capsys):
    data = broken(corpus, tmp_path / "data",
                  lambda f, t, s: t.update({"spk0-0000": t["spk0-0000"] + " zebra yak zebra"}))
    assert main(["gmm-align", "--map-oov", "true", str(data), str(corpus["root"] / "lang"), str(corpus["root"] / "gmm"),
                 str(tmp_path / "ali")]) == 0
    assert f"text: 3 words (2 different; most often: zebra 2, yak 1) are not in {corpus['root']}/lang/words.txt and " \
        "taken as <unk>" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["<s>", "</s>", "#0", "#1", "<eps>"])
def test_reserved_words(corpus, tmp_path, capsys, word):
    """words.txt has most of them, and none of them a pronunciation: kaldi-hmm-gmm would end the process."""
    data = broken(corpus, tmp_path / "data", lambda f, t, s: t.update({"spk1-0001": f"ape {word} pea"}))
    lang, gmm = str(corpus["root"] / "lang"), str(corpus["root"] / "gmm")
    for verb, *rest in (("gmm-train", lang, tmp_path / "gmm"), ("gmm-align", lang, gmm, tmp_path / "ali")):
        for options in ([], ["--map-oov", "true"]):
            assert main([verb, *options, str(data), *map(str, rest)]) == 1
            assert f"{data}/text: spk1-0001 has '{word}', which cannot be a word" in capsys.readouterr().err


def test_a_lang_without_a_word_for_unknown_ones(corpus, tmp_path, capsys):
    data = broken(corpus, tmp_path / "data", lambda f, t, s: t.update({"spk0-0000": "ape zebra"}))
    folder = make_dict(tmp_path / "dict")
    (folder / "lexicon.txt").write_text("".join(f"{w} {p}\n" for w, p in WORDS.items()))
    (folder / "silence_phones.txt").write_text("SIL\n")
    L.prepare_lang(folder, tmp_path / "lang")
    capsys.readouterr()
    assert main(["gmm-train", "--map-oov", "true", str(data), str(tmp_path / "lang"), str(tmp_path / "gmm")]) == 1
    assert "spk0-0000 has the word 'zebra'" in (said := capsys.readouterr().err)
    assert "add '<unk> SPN' to lexicon.txt of the dict directory" in said


def test_model_of_other_features(corpus, tmp_path, capsys):
    def narrow(feats, text, speakers):
        for utt in feats:
            feats[utt] = feats[utt][:, :10]
    data = broken(corpus, tmp_path / "data", narrow)
    gmm = str(corpus["root"] / "gmm")
    for verb in (["gmm-align", str(data), str(corpus["root"] / "lang"), gmm, str(tmp_path / "ali")],
                 ["gmm-scores", str(data), gmm, f"ark:{tmp_path}/s.ark"]):
        assert main(verb) == 1
        assert "has dimension 10, but the model was trained on another one" in capsys.readouterr().err
    assert not (tmp_path / "s.ark").exists()


@pytest.mark.parametrize("name, told", [
    ("feats.scp", "feats.scp: missing"), ("cmvn.scp", "cmvn.scp: missing"), ("utt2spk", "utt2spk: missing"),
    ("text", "text: missing")])
def test_missing_files(corpus, tmp_path, capsys, name, told):
    data = broken(corpus, tmp_path / "data", lambda f, t, s: None)
    (data / name).unlink()
    assert main(["gmm-train", str(data), str(corpus["root"] / "lang"), str(tmp_path / "gmm")]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("name, told", [
    ("text", "text: lacks utterance spk0-0000"), ("utt2spk", "utt2spk: tells no speaker of utterance spk0-0000"),
    ("cmvn.scp", "cmvn.scp: lacks speaker spk0 of utterance spk0-0000")])
def test_missing_lines(corpus, tmp_path, capsys, name, told):
    data = broken(corpus, tmp_path / "data", lambda f, t, s: None)
    lines = (data / name).read_text().splitlines()
    (data / name).write_text("".join(f"{line}\n" for line in lines[1:]))
    assert main(["gmm-train", str(data), str(corpus["root"] / "lang"), str(tmp_path / "gmm")]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("name, content, told", [
    ("data/text", b"u \xe9\n", "text: line 1 (u) is not UTF-8 at byte 2"),
    ("data/utt2spk", b"spk0-0000\n", "utt2spk: tells no speaker of utterance spk0-0000"),
    ("data/feats.scp", b"", "feats.scp: holds no utterance"),
    ("lang/L.fst", b"\xd6", "L.fst: not a whole OpenFst file"),
    ("lang/phones/silence.int", b"\n", "silence.int: is empty"),
    ("lang/phones/word_boundary.int", b"5 nowhere\n", "word_boundary.int: line 1: expected 'PHONE-ID POSITION'"),
    ("lang/oov.int", b"", "oov.int: is empty"),
])
def test_spoilt_files(corpus, tmp_path, capsys, name, content, told):
    broken(corpus, tmp_path / "data", lambda f, t, s: None)
    shutil.copytree(corpus["root"] / "lang", tmp_path / "lang")
    (tmp_path / name).write_bytes(content)
    assert main(["gmm-train", str(tmp_path / "data"), str(tmp_path / "lang"), str(tmp_path / "gmm")]) == 1
    assert told in capsys.readouterr().err


def test_features_that_are_not_finite(corpus, tmp_path, capsys):
    def spoil(feats, text, speakers):
        feats["spk2-0002"] = feats["spk2-0002"].copy()
        feats["spk2-0002"][3, 3] = np.nan
    data = broken(corpus, tmp_path / "data", spoil)
    assert main(["gmm-train", str(data), str(corpus["root"] / "lang"), str(tmp_path / "gmm")]) == 1
    assert "utterance spk2-" in capsys.readouterr().err


def test_other_lang_and_broken_model(corpus, tmp_path, capsys):
    (tmp_path / "d").mkdir()
    other = make_dict(tmp_path / "d" / "dict")
    (other / "nonsilence_phones.txt").write_text("A\nE\nP\nT\nZ\n")
    L.prepare_lang(other, tmp_path / "lang")
    data, gmm = str(corpus["root"] / "data"), corpus["root"] / "gmm"
    assert main(["gmm-align", data, str(tmp_path / "lang"), str(gmm), str(tmp_path / "ali")]) == 1
    assert "not the phones that the model was trained with" in capsys.readouterr().err
    (tmp_path / "gmm").mkdir()
    assert main(["gmm-scores", data, str(tmp_path / "gmm"), "ark:/dev/null"]) == 1
    assert "there is no such file; train the model" in capsys.readouterr().err
    shutil.copytree(gmm, tmp_path / "gmm", dirs_exist_ok=True)
    for name, told in (("final.mdl", "holds no whole GMM"), ("tree", "not a whole decision tree"),
                       ("phones.txt", "expected 'SYMBOL ID'")):
        whole = (tmp_path / "gmm" / name).read_bytes()
        (tmp_path / "gmm" / name).write_bytes(whole[len(whole) // 2 if name == "phones.txt" else 0:][:len(whole) // 2])
        assert main(["gmm-scores", data, str(tmp_path / "gmm"), "ark:/dev/null"]) == 1
        assert told in capsys.readouterr().err
        (tmp_path / "gmm" / name).write_bytes(whole)


# ------------------------------------------------------------------------------------------- tied triphones and after

def phones_right(corpus, ali):
    """The share of frames whose phone is the true one."""
    of_pdf = {}
    for pdf, phone, _ in map(str.split, (ali / "tree.txt").read_text().splitlines()):
        of_pdf.setdefault(int(pdf), set()).add(phone.split("_")[0])
    table = IntVectorTable(str(ali / "ali.scp"))
    return np.mean([phone in of_pdf[int(pdf)] for utt, labels in corpus["truth"].items()
                    for pdf, (phone, _) in zip(table[utt], labels)])


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_kind_finds_the_truth(corpus, tmp_path, capsys, kind):
    root = corpus["root"]
    command = ["gmm-train", "--kind", kind, "--num-leaves", "80", "--num-gauss", "150", "--mono-gauss", "60",
               "--mono-iters", "14", "--num-iters", "16", "--lda-dim", "20", "--seed", "2"]
    assert main([*command, str(root / "data"), str(root / "lang"), str(tmp_path / "gmm")]) == 0
    assert f"{kind}: " in capsys.readouterr().out
    assert main(["gmm-align", "--nj", "2", str(root / "data"), str(root / "lang"), str(tmp_path / "gmm"),
                 str(tmp_path / "ali")]) == 0
    assert phones_right(corpus, tmp_path / "ali") > 0.97
    there = {path.name for path in (tmp_path / "gmm").iterdir()}
    assert {"tree", "final.mdl", "phones.txt", "ali.1.gz", "num_jobs", "cmvn_opts", "tree.txt", "gmm.json"} <= there
    assert ("final.mat" in there) == ("splice_opts" in there) == (kind in ("tri2", "tri3"))
    assert ("final.alimdl" in there) == ("trans.1" in there) == (kind == "tri3")
    about = json.loads((tmp_path / "gmm" / "gmm.json").read_text())
    assert about["model_kind"] == kind and about["num_gauss"] == len(load_gmm(tmp_path / "gmm").weights)


def test_speakers_are_adapted_to_by_a_first_pass(corpus, tmp_path, capsys):
    """Of speakers whose features are turned differently, a first pass' words give the transforms of training, and data
    are likelier with them, what they stretch counted."""
    rng = np.random.default_rng(5)
    turns = {f"spk{n}": np.eye(13) + rng.normal(0, 0.5, (13, 13)) for n in range(3)}

    def turn(feats, text, speakers):
        for utt in feats:
            feats[utt] = (feats[utt] @ turns[speakers[utt]]).astype(np.float32)
    root, data = corpus["root"], str(broken(corpus, tmp_path / "data", turn))
    options = TrainOptions(kind="tri3", num_leaves=60, mono_iters=14, num_iters=16, lda_dim=20, seed=2)
    train(data, root / "lang", options, tmp_path / "gmm")
    gmm, likely = str(tmp_path / "gmm"), {}
    transforms = dict(read_matrices(f"ark:{gmm}/trans.1"))
    stretch = {speaker: np.linalg.slogdet(matrix[:, :-1])[1] for speaker, matrix in transforms.items()}
    for name, words in (("first", []), ("second", ["--hyp", f"{data}/text", "--lang", str(root / "lang")])):
        out = f"ark,scp:{tmp_path}/{name}.ark,{tmp_path}/{name}.scp"
        assert main(["gmm-scores", *words, data, gmm, out]) == 0
        scores = MatrixTable(f"{tmp_path}/{name}.scp")
        likely[name] = np.mean([scores[utt].max(axis=1).mean() + bool(words) * stretch[corpus["speakers"][utt]]
                                for utt in scores])
    assert likely["second"] > likely["first"] + 2, likely
    capsys.readouterr()
    assert main(["gmm-scores", "--hyp", f"{data}/text", data, gmm, "ark:/dev/null"]) == 1
    assert "needs --lang" in capsys.readouterr().err


@pytest.fixture(scope="module")
def adapted(corpus):
    """Directories of a tri3, and of a tri2 that is trained on less and has fewer pdfs."""
    root = corpus["root"]
    short = dict(num_leaves=40, mono_iters=6, num_iters=6, lda_dim=20, seed=2)
    train(root / "data", root / "lang", TrainOptions(kind="tri3", **short), root / "tri3")
    keep = sorted(corpus["feats"])[:40]
    few = write_data(root / "few", {utt: corpus["feats"][utt] for utt in keep}, corpus["text"],
                     {utt: corpus["speakers"][utt] for utt in keep})
    train(few, root / "lang", TrainOptions(kind="tri2", **dict(short, num_leaves=30)), root / "tri2")
    return root


@pytest.mark.parametrize("spoil, told", [
    (lambda there, other: shutil.copy(other / "tree", there), "gmm/final.mdl: "),
    (lambda there, other: shutil.copy(other / "final.mdl", there), "gmm/final.mdl: "),
    (lambda there, other: shutil.copy(other / "final.mdl", there / "final.alimdl"), "gmm/final.alimdl: "),
    (lambda there, other: (there / "final.alimdl").unlink(), "final.alimdl: missing, and gmm.json says"),
    (lambda there, other: (there / "splice_opts").write_text("--left-context=\u00b2"), "splice_opts: '--left-context="),
    (lambda there, other: write_matrix(there / "final.mat", np.ones((7, 91))), "but final.mat beside it makes 7"),
], ids=["tree", "final.mdl", "final.alimdl", "no-alimdl", "splice_opts", "final.mat"])
def test_files_of_several_trainings(adapted, tmp_path, capsys, spoil, told):
    """A directory whose files are not of one training is refused by name; they would align wrongly."""
    there = tmp_path / "gmm"
    shutil.copytree(adapted / "tri3", there)
    data = str(adapted / "data")
    assert main(["gmm-scores", data, str(there), "ark:/dev/null"]) == 0
    capsys.readouterr()
    spoil(there, adapted / "tri2")
    assert main(["gmm-scores", data, str(there), "ark:/dev/null"]) == 1
    assert told in capsys.readouterr().err
    assert main(["gmm-align", data, str(adapted / "lang"), str(there), str(tmp_path / "ali")]) == 1
    assert told in capsys.readouterr().err


def test_a_speaker_of_constant_features(corpus, adapted, tmp_path, capsys):
    """Digital silence has no transform of its own; other speakers' transforms are as without it."""
    def silence(feats, text, speakers):
        for utt in feats:
            if speakers[utt] == "spk1":
                feats[utt] = np.ones_like(feats[utt])
    data, lang = str(broken(corpus, tmp_path / "data", silence)), str(adapted / "lang")
    assert main(["gmm-align", data, lang, str(adapted / "tri3"), str(tmp_path / "ali")]) == 0
    assert main(["gmm-align", str(adapted / "data"), lang, str(adapted / "tri3"), str(tmp_path / "all")]) == 0
    one, two = (IntVectorTable(str(tmp_path / name / "ali.scp")) for name in ("ali", "all"))
    assert all(np.array_equal(one[utt], two[utt]) for utt in one if corpus["speakers"][utt] != "spk1")


@pytest.mark.parametrize("hyp, status, told", [
    (lambda lines: [line.replace(" ", " zzz ", 1) for line in lines], 0,
     "hyp: 60 words (1 different; most often: zzz 60"),
    (lambda lines: lines[:12], 0, "hyp: lacks 48 of 60 utterances"),
    (lambda lines: ["other-utterance ape"], 1, "hyp: has none of the 60 utterances"),
    (lambda lines: [line + " <s>" for line in lines], 1, "hyp: spk0-0000 has '<s>'"),
], ids=["unknown", "missing", "none", "reserved"])
def test_hypotheses_of_something_else(adapted, tmp_path, capsys, hyp, status, told):
    lines = (adapted / "data" / "text").read_text().splitlines()
    (tmp_path / "hyp").write_text("".join(line + "\n" for line in hyp(lines)))
    assert main(["gmm-scores", "--hyp", str(tmp_path / "hyp"), "--lang", str(adapted / "lang"), str(adapted / "data"),
                 str(adapted / "tri3"), "ark:/dev/null"]) == status
    assert told in capsys.readouterr().err


def test_hypotheses_and_another_lang(adapted, tmp_path, capsys):
    (tmp_path / "d").mkdir()
    other = make_dict(tmp_path / "d" / "dict")
    (other / "nonsilence_phones.txt").write_text("A\nE\nP\nT\nZ\n")
    L.prepare_lang(other, tmp_path / "lang")
    data = str(adapted / "data")
    assert main(["gmm-scores", "--hyp", f"{data}/text", "--lang", str(tmp_path / "lang"), data, str(adapted / "tri3"),
                 "ark:/dev/null"]) == 1
    assert "not the phones that the model was trained with" in capsys.readouterr().err


@pytest.mark.parametrize("change, options, told", [
    (lambda f, t, s: f.update({u: np.ones_like(x) for u, x in f.items()}), ["--kind", "tri2"],
     "LDA cannot be estimated from them; --kind tri1"),
    (lambda f, t, s: t.update(dict.fromkeys(t, "<unk>")), ["--kind", "tri2"], "data: LDA needs aligned frames"),
    (lambda f, t, s: None, ["--num-leaves", "3"], "3 leaves cannot hold the 22 roots"),
    (lambda f, t, s: None, ["--lda-dim", "0"], "--lda-dim 0: must be at least 1"),
])
def test_what_triphones_cannot_learn_from(corpus, tmp_path, capsys, change, options, told):
    data = broken(corpus, tmp_path / "data", change)
    assert main(["gmm-train", "--mono-iters", "4", "--num-iters", "4", *options, str(data),
                 str(corpus["root"] / "lang"), str(tmp_path / "gmm")]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "gmm").exists()


def test_a_tree_of_another_training(corpus, tmp_path, capsys):
    """A tree of other phones, or of as many pdfs that mean something else."""
    gmm = tmp_path / "gmm"
    shutil.copytree(corpus["root"] / "gmm", gmm)
    lang = corpus["lang"]
    sizes = {phone: len(states) for phone, states in lang.topo.items()}
    few = {phone: size for phone, size in sizes.items() if phone < max(sizes)}
    for tree in (monophone_tree(lang.sets[::-1], sizes), monophone_tree([[phone] for phone in sorted(few)], few)):
        write_tree(gmm / "tree", tree)
        assert main(["gmm-align", str(corpus["root"] / "data"), str(lang.path), str(gmm), str(tmp_path / "ali")]) == 1
        told = capsys.readouterr().err
        assert "final.mdl: " in told and ("different trainings" in told or "both must be of one training" in told)


def test_one_speaker_one_phone_and_few_frames(corpus, tmp_path, capsys):
    """A speaker of too few frames keeps its features; phones that never occur have pdfs all the same."""
    def poor(feats, text, speakers):
        for utt in sorted(feats)[8:]:
            del feats[utt], text[utt], speakers[utt]
        speakers.update(dict.fromkeys(speakers, "spk0"))
        keep = sorted(feats)[0]
        speakers[keep] = "spk9"
    data = broken(corpus, tmp_path / "data", poor)
    assert main(["gmm-train", "--kind", "tri3", "--mono-iters", "6", "--num-iters", "6", "--lda-dim", "13", str(data),
                 str(corpus["root"] / "lang"), str(tmp_path / "gmm")]) == 0
    assert "1 speakers have too few frames" in capsys.readouterr().err
    model = load_gmm(tmp_path / "gmm")
    named = {corpus["lang"].phones[phone] for phone in model.transitions.tuples[:, 0]}
    assert {"SPN", "A_S", "SIL_B"} <= named
    assert main(["gmm-align", str(data), str(corpus["root"] / "lang"), str(tmp_path / "gmm"),
                 str(tmp_path / "ali")]) == 0
    assert "8 of 8 utterances aligned" in capsys.readouterr().out
