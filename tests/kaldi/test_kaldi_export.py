"""essence export --format nnet3 in a compiled Kaldi: its scores are PyTorch's, its words those of our decoder."""
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import ROOT, table
from builders.speaking import WIDE, best_words, make_audio, make_language, make_speaker

from essence_kd.am.cmn import OnlineMean, cmn_of_model, without_mean
from essence_kd.am.forward import load_model
from essence_kd.export.exporter import export
from essence_kd.io.tables import MatrixWriter, read_matrices

pytestmark = pytest.mark.kaldi(*(f"src/{path}" for path in (
    "nnet3bin/nnet3-compute", "nnet3bin/nnet3-am-copy", "nnet3bin/nnet3-latgen-faster", "online2bin/apply-cmvn-online",
    "latbin/lattice-align-words", "bin/ali-to-phones")))
KALDI = os.environ.get("KALDI_ROOT", "")


def kaldi(script, folder):
    """Runs lines of shell with Kaldi's programs on PATH; (what it printed, what it said on stderr)."""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", f". {ROOT}/path.sh; {script}"], cwd=folder, timeout=100,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """lang, gmm and graph (tied triphones), wav/, a data directory of their filterbanks; (folder, graph, feats)."""
    root = tmp_path_factory.mktemp("export")
    graph = make_language(root, triphones=True)
    feats = make_audio(root / "wav", (1.3, 0.4, 3.1, 0.1))
    data = root / "data"
    data.mkdir()
    table(MatrixWriter, data / "feats", feats)
    for name, of in (("utt2spk", lambda u: u), ("spk2utt", lambda u: u), ("text", lambda u: "a"),
                     ("wav.scp", lambda u: root / "wav" / f"{u}.wav")):
        (data / name).write_text("".join(f"{utt} {of(utt)}\n" for utt in feats))
    return root, graph, feats


FEATS = {"none": "scp:data/feats.scp", "utterance": "ark:compute-cmvn-stats scp:data/feats.scp ark:- | apply-cmvn "
         "ark:- scp:data/feats.scp ark:- |", "online": "ark:apply-cmvn-online --config={out}/conf/online_cmvn.conf "
         "{out}/global_cmvn.stats scp:data/feats.scp ark:- |"}


@pytest.mark.parametrize("arch,cmn,options", [
    ("tdnn", "online", {}), ("tdnn", "none", {"norm": "batch"}), ("tdnn_f", "utterance", {}),
    ("tdnn_f", "none", {"norm": "batch"}), ("cnn_tdnn", "online", {})])
def test_scores_are_pytorchs(trained, tmp_path, arch, cmn, options):
    """Inside and at the edges; and Kaldi would write the file as it is, to the byte."""
    root, graph, feats = trained
    online = {"prior": 30, "window": 80, "look_ahead": 0}
    model_dir = make_speaker(tmp_path / "m", graph, arch, cmn=cmn, online=online, **options)
    out = tmp_path / "out"
    export("nnet3", model_dir, out, root / "graph", WIDE)
    told, _ = kaldi(f"nnet3-am-copy {out}/final.mdl {tmp_path}/copy.mdl; cmp {out}/final.mdl {tmp_path}/copy.mdl; "
                    f"nnet3-compute --use-gpu=no --frame-subsampling-factor=3 {out}/final.mdl "
                    f"'{FEATS[cmn].format(out=out)}' ark:{tmp_path}/scores.ark", root)
    found = dict(read_matrices(f"ark:{tmp_path}/scores.ark"))
    model, about = load_model(model_dir)
    assert list(found) == list(feats)
    for utt, scores in found.items():
        ready = without_mean(feats[utt], cmn_of_model(about, model_dir))
        with torch.inference_mode():
            logits = model(torch.from_numpy(ready)[None], torch.tensor([len(ready)]))[0]
        np.testing.assert_allclose(scores, logits.log_softmax(1).numpy(), atol=1e-4)
    told, _ = kaldi(f"nnet3-am-info {out}/final.mdl", root)
    assert f"num-pdfs: {graph.num_pdfs}" in told and f"prior-dimension: {graph.num_pdfs}" in told


def test_a_running_mean_is_kaldis(trained, tmp_path):
    root, _, feats = trained
    mean = tuple(np.random.default_rng(0).uniform(6, 12, 40).round(3).tolist())
    for prior, window in ((200, 600), (20, 50), (0, 30)):
        stats = np.stack([np.append(np.array(mean) * 100, 100), np.append(np.ones(40) * 9e4, 0)])
        table(MatrixWriter, tmp_path / "g", {"g": stats.astype(np.float32)})
        kaldi(f"matrix-sum scp:{tmp_path}/g.scp {tmp_path}/g.mat; "
              f"apply-cmvn-online --cmn-window={window} --speaker-frames={window} --global-frames={prior} "
              f"{tmp_path}/g.mat scp:data/feats.scp ark:{tmp_path}/n.ark", root)
        for utt, theirs in read_matrices(f"ark:{tmp_path}/n.ark"):
            np.testing.assert_allclose(OnlineMean(prior, window, 0, mean)(feats[utt]), theirs, atol=2e-4)


@pytest.fixture(scope="module")
def exported(trained):
    """A student of a running mean, exported; (folder, model directory)."""
    root, graph, _ = trained
    model_dir = make_speaker(root / "online", graph)
    export("nnet3", model_dir, root / "out", root / "graph", WIDE)
    return root / "out", model_dir


def words_of(text, utts):
    """utterance -> words of lines of stderr that begin with an utterance."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split() and line.split()[0] in utts}


def test_words_are_those_of_the_best_path(trained, exported):
    """With lattices whose words and phones can be told apart."""
    root, graph, feats = trained
    out, model_dir = exported
    search = "--beam=200 --max-active=100000 --acoustic-scale=0.5 --lattice-beam=8"
    _, offline = kaldi(
        f"nnet3-latgen-faster --frame-subsampling-factor=3 {search} --word-symbol-table={out}/graph/words.txt "
        f"{out}/final.mdl {out}/graph/HCLG.fst '{FEATS['online'].format(out=out)}' ark:lat.ark", root)
    expected = {utt: best_words(graph, model_dir, matrix) for utt, matrix in feats.items()}
    assert words_of(offline, feats) == expected and sum(map(len, expected.values())) > 8
    _, aligned = kaldi(f"lattice-align-words --test=true {out}/graph/phones/word_boundary.int {out}/final.mdl "
                       "ark:lat.ark ark:/dev/null", root)
    assert f"Successfully aligned {len(feats)} lattices; 0 had errors" in aligned
    phones, said = kaldi(f"lattice-best-path --acoustic-scale=0.5 ark:lat.ark ark:/dev/null ark:- | ali-to-phones "
                         f"--write-lengths=true {out}/final.mdl ark:- ark,t:-", root)
    assert "WARNING" not in said
    for line in phones.splitlines():
        utt, *pairs = line.replace(";", "").split()
        assert sum(map(int, pairs[1::2])) == -(-len(feats[utt]) // 3)


@pytest.mark.kaldi("src/online2bin/online2-wav-nnet3-latgen-faster")
def test_words_while_speech_goes_on(trained, exported):
    """In features and chunks that Kaldi makes itself."""
    root, graph, feats = trained
    out, model_dir = exported
    _, said = kaldi(
        f"cd {out}; online2-wav-nnet3-latgen-faster --config=conf/online.conf --word-symbol-table=graph/words.txt "
        f"final.mdl graph/HCLG.fst ark:{root}/data/spk2utt scp:{root}/data/wav.scp ark:{root}/online.ark", root)
    assert words_of(said, feats) == {utt: best_words(graph, model_dir, matrix) for utt, matrix in feats.items()}


def test_scripts_decode(trained, exported, tmp_path):
    """steps/nnet3/decode.sh with the folder as it is."""
    root, graph, feats = trained
    out, model_dir = exported
    for name in ("steps", "utils"):
        (tmp_path / name).symlink_to(Path(KALDI) / "egs" / "wsj" / "s5" / name)
    (tmp_path / "path.sh").write_text(f"export KALDI_ROOT={KALDI}\n. {ROOT}/path.sh\n")
    shutil.copytree(root / "data", tmp_path / "data")
    shutil.copytree(out, tmp_path / "exp")
    told, _ = kaldi(f"cd {tmp_path}; steps/nnet3/decode.sh --config exp/conf/decode.config --nj 2 --skip-scoring true "
                    "exp/graph data exp/decode", tmp_path)
    text, _ = kaldi("lattice-best-path --acoustic-scale=0.5 --word-symbol-table=exp/graph/words.txt "
                    "'ark:gunzip -c exp/decode/lat.*.gz |' ark,t:- 2>/dev/null", tmp_path)
    names = graph.words
    found = {line.split()[0]: [names[int(w)] for w in line.split()[1:]] for line in text.splitlines()}
    assert found == {utt: best_words(graph, model_dir, matrix) for utt, matrix in feats.items()}
    assert "apply-cmvn-online" in told
    assert "--global-frames=200" in (out / "cmvn_opts").read_text()
