"""With a compiled Kaldi (KALDI_ROOT): its decoder against ours, the plug-in's nnet3 side, the preparation of swbd."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from builders import ROOT, plans
from builders.switchboard import WORDS, make_corpora
from builders.training_data import TrainingStage

from essence_kd.io.posterior import read_posteriors
from essence_kd.io.tables import MatrixWriter, read_int_vectors, read_matrices
from essence_kd.io.wave import write_wav

KALDI = os.environ.get("KALDI_ROOT", "")
pytestmark = pytest.mark.kaldi

# what Kaldi's trainer is told
SMALL = ("--use-gpu no --trainer.num-epochs 1 --trainer.optimization.num-jobs-initial 1 "
         "--trainer.optimization.num-jobs-final 1 --trainer.num-jobs-compute-prior 1")


def bash(cwd, script, **env):
    """Runs lines of shell with Kaldi's and this project's programs on PATH; returns what it printed."""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", f". {ROOT}/path.sh; {script}"], cwd=cwd,
                          capture_output=True,
                          text=True, timeout=100, env={**os.environ, **env})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def kaldi(tmp_path_factory):
    """A recipe directory with lang, an untrained monophone model, its graph, data of noise, and an equal alignment."""
    missing = subprocess.run(["local/kaldi/check.sh", "--lattices", "true", "--nnet3", "true"], cwd=ROOT,
                             capture_output=True,
                             text=True)
    if missing.returncode:
        pytest.fail(f"KALDI_ROOT is set, but {missing.stderr}")
    room = tmp_path_factory.mktemp("kaldi")
    rng = np.random.default_rng(2)
    dictionary = room / "data" / "dict"
    dictionary.mkdir(parents=True)
    (dictionary / "lexicon.txt").write_text("<unk> spn\n" + "".join(f"{w} {p}\n" for w, p in WORDS.items()))
    (dictionary / "silence_phones.txt").write_text("sil\nspn\n")
    (dictionary / "optional_silence.txt").write_text("sil\n")
    (dictionary / "nonsilence_phones.txt").write_text("".join(f"{p}\n" for p in sorted(
        {p for phones in WORDS.values() for p in phones.split()})))
    data = room / "data" / "train"
    data.mkdir()
    with MatrixWriter(f"ark,scp:{data}/feats.ark,{data}/feats.scp") as writer:
        for i in range(24):
            writer.write(f"s{i % 3}-u{i:02d}", rng.normal(size=(150 + 5 * i, 13)).astype(np.float32))
    utts = sorted(line.split()[0] for line in open(data / "feats.scp"))
    (data / "utt2spk").write_text("".join(f"{u} {u[:2]}\n" for u in utts))
    (data / "text").write_text("".join(f"{u} {' '.join(rng.choice(list(WORDS), size=4))}\n" for u in utts))
    (room / "lm_text").write_text("\n".join(" ".join(rng.choice(list(WORDS), size=5)) for _ in range(60)) + "\n")
    (room / "path.sh").write_text(f"export KALDI_ROOT={KALDI} PATH={bash(room, 'echo $PATH').strip()} LC_ALL=C\n")
    for name in ("steps", "utils"):
        (room / name).symlink_to(f"{KALDI}/egs/wsj/s5/{name}")
    bash(room, """
        sort -o data/train/feats.scp data/train/feats.scp
        feat-to-len scp:data/train/feats.scp ark,t:data/train/utt2num_frames
        utils/utt2spk_to_spk2utt.pl data/train/utt2spk >data/train/spk2utt
        utils/prepare_lang.sh data/dict '<unk>' data/local data/lang
        essence train-lm --order 2 --words data/lang/words.txt --test lm_text lm_text lm.arpa.gz
        gunzip -c lm.arpa.gz | arpa2fst --disambig-symbol='#0' --read-symbol-table=data/lang/words.txt - data/lang/G.fst
        compute-cmvn-stats --spk2utt=ark:data/train/spk2utt scp:data/train/feats.scp \\
          ark,scp:cmvn.ark,data/train/cmvn.scp
        mkdir -p exp/ali exp/mono
        gmm-init-mono --shared-phones=data/lang/phones/sets.int --train-feats=scp:data/train/feats.scp \\
          data/lang/topo 13 \\
          exp/mono/final.mdl exp/mono/tree
        cp exp/mono/* data/lang/phones.txt exp/ali; cp data/lang/phones.txt exp/mono; echo 1 >exp/ali/num_jobs
        utils/mkgraph.sh data/lang exp/mono exp/graph
        utils/sym2int.pl --map-oov 1 -f 2- data/lang/words.txt data/train/text |
          compile-train-graphs --read-disambig-syms=data/lang/phones/disambig.int exp/ali/tree exp/ali/final.mdl \\
            data/lang/L.fst ark:- ark:- | align-equal-compiled ark:- scp:data/train/feats.scp ark:- |
            gzip -c >exp/ali/ali.1.gz
        show-transitions data/lang/phones.txt exp/ali/final.mdl >transitions.txt
        essence import-ali --transitions transitions.txt data/train \\
          'ark:gunzip -c exp/ali/ali.*.gz | ali-to-pdf exp/ali/final.mdl ark:- ark:- |' exp/our_ali
        essence import-graph --ali-dir exp/our_ali exp/graph/HCLG.fst exp/mono/final.mdl exp/graph/words.txt graph
        cp exp/mono/final.mdl exp/graph/HCLG.fst graph; cp -r exp/graph/phones graph""",
         ESSENCE_PYTHON=os.sys.executable)
    return room


def test_an_imported_alignment_is_kaldis(kaldi):
    told = dict(line.split(maxsplit=1) for line in bash(kaldi, "gunzip -c exp/ali/ali.1.gz | "
                                                        "ali-to-pdf exp/ali/final.mdl "
                                                        "ark:- ark,t:- 2>/dev/null").splitlines())
    told_of_ours = bash(kaldi, "copy-int-vector scp:exp/our_ali/ali.scp ark,t:-")
    ours = dict(line.split(maxsplit=1) for line in told_of_ours.splitlines())
    assert ours == told and len(ours) == 24
    pdfs = int(bash(kaldi, "am-info exp/mono/final.mdl 2>/dev/null").split("pdfs")[1].split()[0])
    assert (kaldi / "exp" / "our_ali" / "num_pdfs").read_text().strip() == str(pdfs)


def test_kaldis_run_pl_runs_the_jobs_of_a_stage(tmp_path):
    """--cmd has the contract of Kaldi's run.pl, queue.pl and slurm.pl."""
    stage = TrainingStage(tmp_path, {**os.environ, "ESSENCE_PYTHON": os.sys.executable})
    command = f"{KALDI}/egs/wsj/s5/utils/parallel/run.pl"
    done = stage.train_models(command, "--nj", "1")
    assert done.returncode == 0, done.stderr
    assert (stage.exp / "a" / "final.pt").exists()
    assert "# Ended (code 0)" in (stage.exp / "log" / "train.1.log").read_text()
    (stage.corpus.ali / "num_pdfs").write_text("1\n")
    (stage.corpus.ali / ".marker").write_text("done another\n")
    done = stage.train_models(command, "--nj", "1")
    assert done.returncode == 1 and "a training failed; logs:" in done.stderr and "run.pl: job failed" in done.stderr


def plan_beside(data, exp, wav, word):
    """EXP/plan.json of a run with its training set in DATA; also a set of one utterance, and one without text."""
    for name, utt in (("dev", "u"), ("more", "m")):
        (data / name).mkdir()
        shutil.copy(wav, data / name / "a.wav")
        for file, value in (("wav.scp", data / name / "a.wav"), ("utt2spk", utt), ("spk2utt", utt), ("text", word)):
            if (name, file) != ("more", "text"):
                (data / name / file).write_text(f"{utt} {value}\n")
    (data / ".marker").write_text("done made\n")
    sets = plans.make_sets({"train": "train", "dev": "dev", "more": "untranscribed"})
    plans.write(plans.make_plan(exp, data=str(data), engine="kaldi", sets=sets))
    return exp / "plan.json"


def test_features_by_jobs(tmp_path, shell):
    """Kaldi's MFCC, and filterbanks of as many jobs as were asked for; two of three recordings have one speaker."""
    data, rng = tmp_path / "data", np.random.default_rng(3)
    (data / "dict").mkdir(parents=True)
    (data / "dict" / "lexicon.txt").write_text("yes y eh s\n")
    (data / "train").mkdir()
    for i in range(3):
        write_wav(tmp_path / f"{i}.wav", rng.normal(scale=900, size=8000).astype(np.int16), 8000)
    for name, of in (("wav.scp", f"{tmp_path}/{{0}}.wav"), ("text", "yes"), ("utt2spk", "s{1}")):
        (data / "train" / name).write_text("".join(f"s{i // 2}-{i} {of.format(i, i // 2)}\n" for i in range(3)))
    (data / "train" / "spk2utt").write_text("s0 s0-0 s0-1\ns1 s1-2\n")
    plan = plan_beside(data, tmp_path / "exp", tmp_path / "0.wav", "yes")
    done = shell("local/kaldi/make_feats.sh", "--nj", "3", "--cmd", "local/jobs.sh", plan)
    assert done.returncode == 0, done.stdout + done.stderr
    matrices = {name: dict(read_matrices(f"scp:{data}/{name}/feats.scp")) for name in ("train", "train_hires")}
    assert {name: {u: m.shape for u, m in table.items()} for name, table in matrices.items()} == {
        "train": {f"s{i // 2}-{i}": (98, 13) for i in range(3)},
        "train_hires": {f"s{i // 2}-{i}": (98, 40) for i in range(3)}}
    logs = tmp_path / "exp" / "kaldi" / "exp" / "make_fbank" / "train"
    names = sorted(p.name for p in logs.glob("*.log"))
    assert names == ["cmvn.log", *(f"fbank.{j}.log" for j in (1, 2, 3)), "join.log"]
    assert "up to date" in shell("local/kaldi/make_feats.sh", plan).stdout
    assert not (data / "more" / "feats.scp").exists()
    for name in ("dev", "dev_hires", "more_cut_hires"):
        assert [u for u, _ in read_matrices(f"scp:{data}/{name}/feats.scp")] == ["m" if "more" in name else "u"]
    (tmp_path / "2.wav").write_bytes(b"nothing")
    with open(data / "train" / "text", "a") as stream:
        stream.write("\n")
    done = shell("local/kaldi/make_feats.sh", "--nj", "2", "--cmd", "local/jobs.sh", plan)
    assert done.returncode == 1 and "2.wav" in done.stdout + done.stderr


def test_features_leave_the_data_as_stage_0_made_it(tmp_path, shell):
    """Kaldi drops segments under 0.1 s: they have no MFCC, the set keeps them, and the next run has nothing to do."""
    work, exp, train = tmp_path / "data", tmp_path / "exp", tmp_path / "data" / "train"
    (work / "dict").mkdir(parents=True)
    train.mkdir()
    (work / "dict" / "lexicon.txt").write_text("".join(f"{w} {p}\n" for w, p in WORDS.items()))
    samples = np.random.default_rng(4).integers(-2000, 2000, 8000 * 12).astype(np.int16)
    write_wav(tmp_path / "a.wav", samples, 8000)
    utts = {f"s{i // 12}-u{i:02d}": (i / 2, i / 2 + (0.05 if i == 5 else 0.5)) for i in range(24)}
    files = {"wav.scp": f"a {tmp_path}/a.wav\n", "text": "".join(f"{utt} {next(iter(WORDS))}\n" for utt in utts),
             "segments": "".join(f"{utt} a {start} {end}\n" for utt, (start, end) in utts.items()),
             "utt2spk": "".join(f"{utt} {utt[:2]}\n" for utt in utts),
             "spk2utt": "".join(f"{s} {' '.join(utt for utt in utts if utt[:2] == s)}\n" for s in ("s0", "s1"))}
    for file, text in files.items():
        (train / file).write_text(text)
    plan = plan_beside(work, exp, tmp_path / "a.wav", next(iter(WORDS)))
    for script, told in (("make_feats", "no features of 1 of 24"), ("perturb_speed", "no features of 3 of 72")):
        command = [f"local/kaldi/{script}.sh", "--nj", "1", plan]
        done = shell(*command)
        assert done.returncode == 0 and told in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
        assert files == {file: (train / file).read_text() for file in files}
        done = shell(*command)
        assert done.returncode == 0 and "up to date" in done.stdout, done.stdout
    count = {name: len((work / name / "feats.scp").read_text().splitlines())
             for name in ("train", "train_hires", "train_sp", "train_sp_hires")}
    assert count == {"train": 23, "train_hires": 24, "train_sp": 69, "train_sp_hires": 69}


@pytest.mark.parametrize("shift", [10, 30])
def test_kaldis_decoder_and_ours_find_the_same_words(kaldi, tmp_path, shift):
    pdfs = int((kaldi / "exp" / "our_ali" / "num_pdfs").read_text())
    rng = np.random.default_rng(shift)
    with MatrixWriter(f"ark:{tmp_path}/scores.ark") as writer:
        for utt, ali in list(read_int_vectors(f"scp:{kaldi}/exp/our_ali/ali.scp"))[:6]:
            ali = ali[::shift // 10]
            scores = rng.normal(size=(len(ali), pdfs))
            scores[np.arange(len(ali)), ali] += 4
            writer.write(utt, (scores * shift / 10).astype(np.float32))
    shutil.copy(kaldi / "data" / "train" / "text", tmp_path / "all")
    (tmp_path / "text").write_text("".join(sorted((tmp_path / "all").read_text().splitlines(keepends=True))[:6]))
    frame_shift = f"frame_shift_ms: {shift}.0\n"
    (tmp_path / "conf.yaml").write_text(f"acoustic_scale: 0.4\nbeam: 14.0\noutput_beam: 4.0\n{frame_shift}"
                                        "sweep_scales: [0.3, 0.4]\nsweep_penalties: [0.0, 1.0]\n"
                                        "sweep_output_beam: 4.0\n")
    # a search so narrow that words are found only if the penalty, here a gain, is known to it
    (tmp_path / "narrow.yaml").write_text(f"acoustic_scale: 0.1\nbeam: 4.0\noutput_beam: 1.0\n{frame_shift}"
                                          "word_insertion_penalty: -4.0\n")
    env = {"ESSENCE_PYTHON": os.sys.executable}
    bash(kaldi, f"""
        lattice="essence decode --decoder kaldi-lattice"
        essence decode --decoder kaldi --config {tmp_path}/conf.yaml graph ark:{tmp_path}/scores.ark {tmp_path}/ours
        $lattice --config {tmp_path}/conf.yaml graph ark:{tmp_path}/scores.ark {tmp_path}/kaldis
        essence decode --decoder kaldi --config {tmp_path}/narrow.yaml graph ark:{tmp_path}/scores.ark \\
          {tmp_path}/our_narrow
        $lattice --config {tmp_path}/narrow.yaml graph ark:{tmp_path}/scores.ark {tmp_path}/kaldi_narrow
        essence decode --decoder kaldi --config {tmp_path}/conf.yaml --sweep {tmp_path}/text graph \\
          ark:{tmp_path}/scores.ark \\
          {tmp_path}/our_sweep
        $lattice --config {tmp_path}/conf.yaml --sweep {tmp_path}/text graph ark:{tmp_path}/scores.ark \\
          {tmp_path}/kaldi_sweep""", **env)
    hyps = [(tmp_path / name / "hyp.txt").read_text() for name in ("ours", "kaldis")]
    assert hyps[0] == hyps[1] and len(hyps[0].split()) > 6
    narrow = [(tmp_path / name / "hyp.txt").read_text() for name in ("our_narrow", "kaldi_narrow")]
    assert narrow[0] == narrow[1] != hyps[0]
    ctm = [[line.split()[:5] for line in (tmp_path / name / "hyp.ctm").read_text().splitlines()]
           for name in ("ours", "kaldis")]
    assert [(c[0], c[4]) for c in ctm[0]] == [(c[0], c[4]) for c in ctm[1]]
    off = [abs(float(a[2]) - float(b[2])) for a, b in zip(*ctm)]
    assert np.median(off) < 0.02 and json.loads((tmp_path / "kaldis" / "decode.json").read_text())["no_path"] == 0
    tables = [{(p["acoustic_scale"], p["word_insertion_penalty"]): p["errors"] for p in json.loads(
        (tmp_path / name / "sweep.json").read_text())["points"]} for name in ("our_sweep", "kaldi_sweep")]
    assert set(tables[0]) <= set(tables[1]) and all(abs(n - tables[1][point]) <= 1 for point, n in tables[0].items())


@pytest.mark.kaldi(*(f"src/{name}" for name in ("lmbin/arpa-to-const-arpa", "latbin/lattice-lmrescore",
                                                "latbin/lattice-lmrescore-const-arpa")))
def test_lattices_rescored_by_kaldi_and_by_us_have_the_same_costs(kaldi, tmp_path, shell):
    """The graph's bigram replaced by a trigram: our lattice's best cost is that by Kaldi's lattice tools."""
    done = shell("local/kaldi/check.sh", "--gmm", "false", "--lattices", "true", "--rescore", "true")
    assert done.returncode == 0, done.stderr
    pdfs = int((kaldi / "exp" / "our_ali" / "num_pdfs").read_text())
    rng = np.random.default_rng(4)
    with MatrixWriter(f"ark:{tmp_path}/scores.ark") as writer:
        for utt, ali in list(read_int_vectors(f"scp:{kaldi}/exp/our_ali/ali.scp"))[:8]:
            scores = rng.normal(size=(len(ali), pdfs))
            scores[np.arange(len(ali)), ali] += 2
            writer.write(utt, scores.astype(np.float32))
    (tmp_path / "conf.yaml").write_text("acoustic_scale: 0.3\nbeam: 16.0\noutput_beam: 8.0\nframe_shift_ms: 10.0\n"
                                        "word_insertion_penalty: 0.5\nmax_active: 100000\n")
    # sentences that the bigram finds unlikely
    words = sorted(WORDS)
    lines = [" ".join(words[(i + j * j) % len(words)] for j in range(5)) for i in range(40)]
    (tmp_path / "text3").write_text("\n".join(lines) + "\n")
    data = tmp_path / "data"
    shutil.copytree(kaldi / "data" / "lang", data / "lang")
    (data / "lm_rescore").mkdir()
    for folder in ("lang", "lm_rescore"):
        (data / folder / ".marker").write_text("done made\n")
    plan = plans.write(plans.make_plan(tmp_path / "exp", data=str(data), engine="kaldi", rescore_lm_order=3))
    bash(kaldi, f"essence train-lm --order 3 --words data/lang/words.txt {tmp_path}/text3 {data}/lm_rescore/lm.arpa.gz",
         ESSENCE_PYTHON=os.sys.executable)
    for said in ("G.carpa is in", "up to date"):
        done = shell("local/kaldi/const_arpa.sh", f"{plan.exp}/plan.json")
        assert done.returncode == 0 and said in done.stdout, done.stderr
    few = data / "few"  # of lattices that are there already, as the GMM's, data say what utterances there are
    few.mkdir()
    for file, value in (("wav.scp", "/none.wav"), ("utt2spk", "s"), ("utt2num_frames", "150")):
        (few / file).write_text("".join(f"{utt} {value}\n" for utt, _ in read_matrices(f"ark:{tmp_path}/scores.ark")))
    lists = ["--decoder", "kaldi", "--config", tmp_path / "conf.yaml", "--n-best", 1]
    bash(kaldi, f"""
        lattice="essence decode --decoder kaldi-lattice"
        $lattice --config {tmp_path}/conf.yaml graph ark:{tmp_path}/scores.ark {tmp_path}/plain
        $lattice --config {tmp_path}/conf.yaml --old-lm data/lang/G.fst --new-lm {data}/lang_rescore/G.carpa \
          graph ark:{tmp_path}/scores.ark {tmp_path}/kaldis
        $lattice --config {tmp_path}/conf.yaml --old-lm data/lang/G.fst --new-lm {data}/lang_rescore/G.carpa \
          --data {few} graph 'lat:gunzip -c {tmp_path}/plain/lat.gz |' {tmp_path}/again
        essence decode {' '.join(map(str, lists))} --old-lm lm.arpa.gz --new-lm {data}/lm_rescore/lm.arpa.gz \
          graph ark:{tmp_path}/scores.ark {tmp_path}/ours""", ESSENCE_PYTHON=os.sys.executable)
    hyps = {name: (tmp_path / name / "hyp.txt").read_text() for name in ("plain", "kaldis", "ours")}
    assert hyps["kaldis"] == hyps["ours"] == (tmp_path / "again" / "hyp.txt").read_text() != hyps["plain"]
    lattices = f"gunzip -c {tmp_path}/kaldis/lat_rescored.gz"
    paths = bash(kaldi, f"lattice-add-penalty --word-ins-penalty=0.5 'ark:{lattices} |' ark:- |"
                 "lattice-scale --acoustic-scale=0.3 ark:- ark:- | lattice-1best ark:- ark,t:- 2>/dev/null")
    costs = {}
    for block in paths.strip().split("\n\n"):
        utt, *arcs = block.splitlines()
        weights = [arc.split()[-1].split(",") for arc in arcs if "," in arc]
        costs[utt.strip()] = sum(float(graph) + float(acoustic) for graph, acoustic, *_ in weights)
    ours = dict(line.rsplit("-1 ", 1) for line in (tmp_path / "ours" / "nbest.cost").read_text().splitlines())
    near = {u: pytest.approx(c, abs=0.02) for u, c in costs.items()}
    assert len(ours) == 8 and {u: float(c) for u, c in ours.items()} == near
    told = [json.loads((tmp_path / name / "decode.json").read_text())["rescoring"]
            for name in ("plain", "kaldis", "ours")]
    assert told[0] is None and [(t["method"], t["order"]) for t in told[1:]] == [("lattice", 3)] * 2


def test_a_failing_program_names_its_log(kaldi, tmp_path, shell):
    with MatrixWriter(f"ark:{tmp_path}/scores.ark") as writer:
        writer.write("u", np.zeros((5, 3), np.float32))
    done = shell("local/bin/essence", "decode", "--decoder", "kaldi-lattice", kaldi / "graph",
                 f"ark:{tmp_path}/scores.ark",
                 tmp_path / "out", env={"PATH": bash(kaldi, "echo $PATH").strip()})
    assert done.returncode == 1 and "3 columns" in done.stderr and "Traceback" not in done.stderr
    broken = tmp_path / "graph"
    shutil.copytree(kaldi / "graph", broken)
    (broken / "final.mdl").write_bytes(b"nothing")
    pdfs = int((kaldi / "exp" / "our_ali" / "num_pdfs").read_text())
    with MatrixWriter(f"ark:{tmp_path}/scores.ark") as writer:
        writer.write("u", np.zeros((5, pdfs), np.float32))
    done = shell("local/bin/essence", "decode", "--decoder", "kaldi-lattice", broken, f"ark:{tmp_path}/scores.ark",
                 tmp_path / "out", env={"PATH": bash(kaldi, "echo $PATH").strip()})
    assert done.returncode == 1 and "out/log/" in done.stderr and "Traceback" not in done.stderr


def test_an_nnet3_student_by_kaldis_trainer_and_as_a_teacher(kaldi, tmp_path):
    pdfs = int((kaldi / "exp" / "our_ali" / "num_pdfs").read_text())
    rng = np.random.default_rng(0)
    with MatrixWriter(f"ark,scp:{kaldi}/teacher.ark,{kaldi}/teacher.scp") as writer:
        for utt, feats in read_matrices(f"scp:{kaldi}/data/train/feats.scp"):
            probs = rng.dirichlet(np.full(pdfs, 0.1), size=len(feats))
            writer.write(utt, probs.astype(np.float32))
    plugin = ROOT / "recipes" / "plugin"
    student = kaldi / "exp" / "student"
    (student / "configs").mkdir(parents=True)
    (student / "configs" / "network.xconfig").write_text(
        "input dim=13 name=input\nrelu-batchnorm-layer name=tdnn1 dim=24 input=Append(-1,0,1)\n"
        f"output-layer name=output input=tdnn1 dim={pdfs} max-change=1.5\n")
    env = {"ESSENCE_PYTHON": os.sys.executable}
    train = f"""{plugin}/train_nnet3_student.sh --nj 2 --soft-weight 0.5 --num-utts-subset 4 --frames-per-eg 4 \\
        --samples-per-iter 1000 data/train exp/ali exp/essence exp/student -- {SMALL} \\
        --trainer.optimization.minibatch-size 64"""
    bash(kaldi, f"""
        {plugin}/essence_targets.sh --nj 2 --top-k 5 data/train exp/ali teacher.scp exp/essence
        steps/nnet3/xconfig_to_configs.py --xconfig-file exp/student/configs/network.xconfig \\
          --config-dir exp/student/configs""", **env)
    # writing egs is interrupted: the logs are named, and the same command writes them all
    (kaldi / "stops.sh").write_text('case "$*" in *shuffle.JOB.log*) exit 1 ;; esac\nexec utils/parallel/run.pl "$@"\n')
    stopped = train.replace(" --nj", " --cmd 'bash stops.sh' --nj", 1)
    done = subprocess.run(["bash", "-c", stopped], cwd=kaldi, capture_output=True,
                          text=True, env={**os.environ, **env, "PATH": bash(kaldi, "echo $PATH").strip()})
    assert done.returncode == 1 and "writing egs failed; logs: exp/student/egs/log" in done.stderr
    assert (student / "egs" / "jobs").exists() and not (student / "egs" / ".marker").exists()
    out = bash(kaldi, train, **env)
    assert "the student is in exp/student" in out and (student / "final.mdl").exists()
    frames = sum(len(m) for _, m in read_matrices(f"scp:{kaldi}/data/train/feats.scp"))
    egs = student / "egs"
    assert int((egs / "info" / "num_frames").read_text()) == frames and not (egs / "jobs").exists()
    # the examples: half the weight on the aligned class, half on the five of the teacher (one may be both)
    text = bash(kaldi, "nnet3-copy-egs ark:exp/student/egs/egs.1.ark ark,t:- 2>/dev/null")
    vectors = re.findall(r"dim=\d+ \[ ([^\]]*)\]", text.replace("\n", " "))
    rows = [[float(w) for w in row.split()[1::2]] for row in vectors]
    rows = [row for row in rows if row]
    # nnet3-get-egs weighs rows down that two chunks share
    assert len(rows) > 300 and all(sum(row) < 1.001 and max(row) >= 0.499 * sum(row) for row in rows)
    assert sum(abs(sum(row) - 1) < 1e-3 for row in rows) > 0.7 * len(rows)
    assert {len(row) for row in rows} <= {5, 6}
    assert "up to date" in bash(kaldi, f"{train} --stage 1000", **env)  # the egs; the trainer has nothing to do
    # audio without transcripts: its targets are taken as they are
    found, lines = kaldi / "data" / "found", {}
    found.mkdir()
    for name in ("data/train/feats.scp", "data/train/utt2spk", "data/train/cmvn.scp", "teacher.scp"):
        lines[name] = dict(line.split(maxsplit=1) for line in (kaldi / name).read_text().splitlines())
    utts = sorted(lines["teacher.scp"])[:4]
    speaker = lines["data/train/utt2spk"]
    for path, line in ((found / "feats.scp", lambda u: lines["data/train/feats.scp"][u]),
                       (found / "utt2spk", "z-{}".format),
                       (found / "cmvn.scp", lambda u: lines["data/train/cmvn.scp"][speaker[u]]),
                       (kaldi / "found.scp", lambda u: lines["teacher.scp"][u])):
        path.write_text("".join(f"z-{utt} {line(utt)}\n" for utt in utts))
    more = " --untranscribed data/found --untranscribed-targets exp/essence_found data/train"
    bash(kaldi, f"""
        {plugin}/essence_targets.sh --nj 1 --top-k 5 data/found exp/essence/ali found.scp exp/essence_found
        mkdir exp/student2; cp -r exp/student/configs exp/student2
        {train.replace(" data/train", more, 1).replace("exp/student", "exp/student2")}""", **env)
    egs = kaldi / "exp" / "student2" / "egs"
    longer = sum(len(m) for u, m in read_matrices(f"scp:{kaldi}/data/train/feats.scp") if u in utts)
    assert int((egs / "info" / "num_frames").read_text()) == frames + longer
    text = bash(kaldi, "cat exp/student2/egs/egs.*.ark | nnet3-copy-egs ark:- ark,t:- 2>/dev/null").replace("\n", " ")
    rows = [[float(w) for w in row.split()[1::2]] for row in re.findall(r"dim=\d+ \[ ([^\]]*)\]", text)]
    alone = [row for row in rows if row and max(row) < 0.499 * sum(row)]
    assert 0.3 * longer < len(alone) <= longer and {len(row) for row in alone} == {5}
    # the student as a teacher of the next targets, and decoded by Kaldi's own script
    bash(kaldi, f"""
        {plugin}/essence_targets.sh --nj 2 --top-k 5 data/train exp/ali exp/student exp/essence2
        utils/subset_data_dir.sh --first data/train 3 data/few
        steps/nnet3/decode.sh --nj 1 --beam 6 --lattice-beam 1 --max-active 300 --skip-scoring true \\
          --skip-diagnostics true \\
          exp/graph data/few exp/student/decode
        test -s exp/student/decode/lat.1.gz""", **env)
    fields = json.loads((kaldi / "exp" / "essence2" / "essence.json").read_text())
    assert fields["num_utts"] == 24 and fields["num_frames"] == frames and 0 < fields["mean_mass"] <= 1
    # as a model directory of this project: every third frame of what nnet3-compute answers
    shutil.copy(kaldi / "exp" / "our_ali" / "priors.txt", student)
    (student / "model.yaml").write_text(f"arch: nnet3\nnum_pdfs: {pdfs}\nframe_subsampling_factor: 3\nfeat_dim: 13\n"
                                        "model: {compute: '--frames-per-chunk=30'}\ncmn: speaker\n")
    bash(kaldi, """
        essence forward --output logprob exp/student data/train ark:ours.ark
        essence dump-post --keep 5 --feats scp:data/train/feats.scp exp/student ark,scp:wide.ark,wide.scp
        for j in 1 2 3; do
          essence dump-post --job $j/3 --batch-frames 900 --keep 5 --feats scp:data/train/feats.scp exp/student \\
            ark,scp:w.$j.ark,w.$j.scp
        done
        essence join-post shared.scp w.1.scp w.2.scp w.3.scp
        nnet3-compute 'nnet3-am-copy --raw=true exp/student/final.mdl - |' \
          "ark:apply-cmvn $(cat exp/student/cmvn_opts) --utt2spk=ark:data/train/utt2spk scp:data/train/cmvn.scp \
           scp:data/train/feats.scp ark:- |" ark:theirs.ark""", **env)
    alone, shared = ([(utt, post.ids.tolist(), post.probs.tolist())
                      for utt, post in read_posteriors(f"scp:{kaldi}/{name}.scp")]
                     for name in ("wide", "shared"))
    assert alone == shared and all(0 < len((kaldi / f"w.{j}.scp").read_text().splitlines()) < 24 for j in (1, 2, 3))
    theirs = dict(read_matrices(f"ark:{kaldi}/theirs.ark"))
    ours = dict(read_matrices(f"ark:{kaldi}/ours.ark"))
    assert list(ours) == list(theirs) and all(np.allclose(ours[u], theirs[u][::3], atol=1e-3) for u in ours)
    # a path may have a blank in it; what Kaldi's programs pass over is an error and no shorter archive
    odd = kaldi / "some data"
    shutil.copytree(kaldi / "data" / "train", odd, ignore=shutil.ignore_patterns("split*"))
    forward = [ROOT / "local" / "bin" / "essence", "forward", "--output", "logprob", "exp/student", odd,
               "ark:again.ark"]
    path = bash(kaldi, "echo $PATH").strip()
    done = subprocess.run(forward, cwd=kaldi, capture_output=True, text=True, env={**os.environ, **env, "PATH": path})
    assert done.returncode == 0 and list(ours) == [u for u, _ in read_matrices(f"ark:{kaldi}/again.ark")], done.stderr
    (student / "cmvn_opts").write_text("--norm-means=true\n")
    (odd / "cmvn.scp").write_text("".join(sorted((odd / "cmvn.scp").read_text().splitlines(True))[1:]))
    done = subprocess.run(forward, cwd=kaldi, capture_output=True, text=True, env={**os.environ, **env, "PATH": path})
    assert done.returncode == 1 and "nnet3-compute answers nothing for utterance s0-u00 of" in done.stderr
    # a teacher of another tree is refused before any work
    shutil.copytree(student, kaldi / "exp" / "other", ignore=shutil.ignore_patterns("egs"))
    (kaldi / "exp" / "other" / "tree").write_bytes(b"another")
    done = subprocess.run([plugin / "essence_targets.sh", "data/train", "exp/ali", "exp/other", "exp/essence3"],
                          cwd=kaldi,
                          capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 1 and "exp/other/tree is not exp/ali/tree" in done.stderr


def test_a_recurrent_nnet3_student_with_ivectors_of_targets_at_30_ms(kaldi):
    """Rows every third frame, an i-vector every ten; then a teacher at that rate, beside one without i-vectors."""
    pdfs = int((kaldi / "exp" / "our_ali" / "num_pdfs").read_text())
    rng = np.random.default_rng(1)
    ivectors, student = kaldi / "exp" / "ivectors", kaldi / "exp" / "lstm"
    ivectors.mkdir()
    (ivectors / "ivector_period").write_text("10\n")
    lengths = {utt: len(feats) for utt, feats in read_matrices(f"scp:{kaldi}/data/train/feats.scp")}
    rows = sum(-(-length // 3) for length in lengths.values())
    with MatrixWriter(f"ark,scp:{kaldi}/slow.ark,{kaldi}/slow.scp") as writer:
        for utt, length in lengths.items():
            writer.write(utt, rng.dirichlet(np.full(pdfs, 0.1), size=-(-length // 3)).astype(np.float32))
    with MatrixWriter(f"ark,scp:{ivectors}/ivector_online.ark,{ivectors}/ivector_online.scp") as writer:
        for utt, length in lengths.items():
            writer.write(utt, rng.normal(size=(-(-length // 10), 4)).astype(np.float32))
    (student / "configs").mkdir(parents=True)
    (student / "configs" / "network.xconfig").write_text(
        "input dim=4 name=ivector\ninput dim=13 name=input\n"
        "relu-batchnorm-layer name=tdnn1 dim=24 input=Append(-1,0,1,ReplaceIndex(ivector, t, 0))\n"
        "fast-lstmp-layer name=lstm1 cell-dim=16 recurrent-projection-dim=8 non-recurrent-projection-dim=8 delay=-3\n"
        f"output-layer name=output dim={pdfs} max-change=1.5\n")
    env = {"ESSENCE_PYTHON": os.sys.executable}
    plugin = ROOT / "recipes" / "plugin"
    bash(kaldi, f"""
        {plugin}/essence_targets.sh --nj 2 --top-k 5 --frame-subsampling-factor 3 data/train exp/ali slow.scp exp/slow
        steps/nnet3/xconfig_to_configs.py --xconfig-file exp/lstm/configs/network.xconfig --config-dir exp/lstm/configs
        {plugin}/train_nnet3_student.sh --nj 2 --trainer rnn --soft-weight 0.5 --num-utts-subset 4 \\
          --frames-per-eg 20,14 \\
          --chunk-left-context 6 --samples-per-iter 1000 --online-ivector-dir exp/ivectors \\
          data/train exp/ali exp/slow exp/lstm -- {SMALL} --trainer.rnn.num-chunk-per-minibatch 16""", **env)
    text = bash(kaldi, "nnet3-copy-egs ark:exp/lstm/egs/egs.1.ark ark,t:- 2>/dev/null").replace("\n", " ")
    weights = [[float(w) for w in row.split()[1::2]] for row in re.findall(r"dim=\d+ \[ ([^\]]*)\]", text)]
    sums = np.array([sum(row) for row in weights if row])
    assert len(sums) > 2000 and sums.max() < 1.001 and np.mean(np.abs(sums - 1) < 1e-3) > 0.7
    log = (student / "log" / "compute_prob_valid.combined.log").read_text()
    assert -np.log(pdfs) - 1 < float(re.search(r"log-likelihood for 'output' is (\S+) per frame", log)[1]) < 0
    bash(kaldi, f"""
        test ! -e exp/lstm/frame_subsampling_factor  # the alignments are of every frame, and so is their graph
        mkdir exp/plain; cp exp/lstm/{{tree,cmvn_opts}} exp/plain
        echo 3 | tee exp/lstm/frame_subsampling_factor >exp/plain/frame_subsampling_factor
        printf '%s\\n' 'input dim=13 name=input' 'output-layer name=output dim={pdfs}' >exp/plain/network.xconfig
        steps/nnet3/xconfig_to_configs.py --xconfig-file exp/plain/network.xconfig --config-dir exp/plain
        nnet3-init exp/plain/final.config - | nnet3-am-init exp/ali/final.mdl - exp/plain/final.mdl
        {plugin}/essence_targets.sh --nj 2 --top-k 5 --frames-per-chunk 21 --extra-left-context 6 \\
          --online-ivector-dir exp/ivectors data/train exp/ali exp/lstm exp/plain exp/slow2
        utils/subset_data_dir.sh --first data/train 2 data/two
        steps/nnet3/decode.sh --nj 1 --beam 6 --lattice-beam 1 --max-active 300 --skip-scoring true \\
          --skip-diagnostics true \\
          --online-ivector-dir exp/ivectors exp/graph data/two exp/lstm/decode
        test -s exp/lstm/decode/lat.1.gz""", **env)
    fields = json.loads((kaldi / "exp" / "slow2" / "essence.json").read_text())
    assert (fields["num_utts"], fields["num_frames"], fields["frame_shift_ms"]) == (24, rows, 30)
    done = subprocess.run([plugin / "essence_targets.sh", "data/train", "exp/ali", "exp/lstm", "exp/slow3"], cwd=kaldi,
                          capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 1 and "exp/lstm takes i-vectors of 4 numbers: give --online-ivector-dir" in done.stderr


def ali_lengths(kaldi, lattices):
    """Frames of each utterance's best path."""
    text = bash(kaldi, f"lattice-best-path 'ark:gunzip -c {lattices} |' ark:/dev/null ark,t:- 2>/dev/null")
    return {line.split()[0]: len(line.split()) - 1 for line in text.splitlines()}


def test_a_chain_model_as_a_teacher(kaldi):
    """Its cross-entropy output, its tree and the alignments of every third frame, down to the words of a student."""
    env = {"ESSENCE_PYTHON": os.sys.executable}
    plugin = ROOT / "recipes" / "plugin"
    net = kaldi / "exp" / "chain" / "net"
    (net / "configs").mkdir(parents=True)
    bash(kaldi, """
        cp -r data/lang data/lang_chain
        python3 steps/nnet3/chain/gen_topo.py $(cat data/lang/phones/nonsilence.csl) \\
          $(cat data/lang/phones/silence.csl) \\
          >data/lang_chain/topo
        tree=exp/chain/tree_sp; mkdir $tree
        gmm-init-mono --shared-phones=data/lang/phones/sets.int --train-feats=scp:data/train/feats.scp \\
          data/lang_chain/topo 13 \\
          $tree/final.mdl $tree/tree
        cp data/lang/phones.txt $tree; echo 1 >$tree/num_jobs
        convert-ali --frame-subsampling-factor=3 exp/ali/final.mdl $tree/final.mdl $tree/tree \\
          'ark:gunzip -c exp/ali/ali.1.gz |' "ark:| gzip -c >$tree/ali.1.gz"
        pdfs=$(tree-info $tree/tree | awk '/num-pdfs/ { print $2 }')
        printf '%s\n' 'input dim=13 name=input' 'relu-batchnorm-layer name=tdnn1 dim=16 input=Append(-1,0,1)' \\
          "output-layer name=output input=tdnn1 include-log-softmax=false dim=$pdfs" \\
          "output-layer name=output-xent input=tdnn1 dim=$pdfs" >exp/chain/net/configs/network.xconfig
        steps/nnet3/xconfig_to_configs.py --xconfig-file exp/chain/net/configs/network.xconfig \\
          --config-dir exp/chain/net/configs
        nnet3-init exp/chain/net/configs/final.config - |
          nnet3-copy --edits="set-learning-rate learning-rate=1" - - |
          nnet3-am-init $tree/final.mdl - exp/chain/net/final.mdl
        cp $tree/tree exp/chain/net; echo 3 >exp/chain/net/frame_subsampling_factor
        echo --norm-means=true >exp/chain/net/cmvn_opts""", **env)

    def refused(*args):
        done = subprocess.run([plugin / "essence_targets.sh", *args], cwd=kaldi, capture_output=True, text=True,
                              env={**os.environ, **env})
        assert done.returncode == 1 and not (kaldi / "exp" / "refused").exists()
        return done.stderr

    said = refused("data/train", "exp/ali", "exp/chain/net", "exp/refused")
    assert "is a chain model" in said and "--output-name output-xent, and as ALI the directory of its tree" in said
    said = refused("--output-name", "output-xent", "data/train", "exp/ali", "exp/chain/net", "exp/refused")
    assert "net/tree is not exp/ali/tree" in said and "steps/nnet3/chain/build_tree.sh made" in said
    assert "no output 'xent'" in refused("--output-name", "xent", "data/train", "exp/chain/tree_sp", "exp/chain/net",
                                         "exp/refused")
    assert "exp/mono/final.mdl is no nnet3 model" in refused("data/train", "exp/ali", "exp/mono", "exp/refused")

    bash(kaldi, f"""
        {plugin}/essence_targets.sh --nj 2 --top-k 5 --output-name output-xent data/train exp/chain/tree_sp \\
          exp/chain/net exp/chain/essence
        steps/nnet3/compute_output.sh --nj 1 --output-name output-xent --frame-subsampling-factor 3 --apply-exp true \\
          data/train exp/chain/net exp/chain/output""", **env)
    theirs = dict(read_matrices(f"ark:{kaldi}/exp/chain/output/output.1.ark"))

    def are_the_largest_of(matrices, targets):
        posts = dict(read_posteriors(f"scp:{kaldi}/{targets}/post.scp"))
        assert list(posts) == sorted(matrices)
        for utt, post in posts.items():
            rows = -np.sort(-matrices[utt], axis=1)[:, :5]
            assert np.allclose(post.probs.reshape(-1, 5), rows / rows.sum(1, keepdims=True), atol=1e-4)

    are_the_largest_of(theirs, "exp/chain/essence")
    # the same network on online CMVN, which goes on from one utterance of a speaker to the next
    said = bash(kaldi, f"""
        cp -r exp/chain/net exp/chain/online; touch exp/chain/online/online_cmvn; echo >exp/chain/online/cmvn_opts
        matrix-sum --binary=false scp:data/train/cmvn.scp exp/chain/online/global_cmvn.stats
        {plugin}/essence_targets.sh --nj 7 --top-k 5 --output-name output-xent data/train exp/chain/tree_sp \\
          exp/chain/online \\
          exp/chain/essence_online
        nnet3-compute --frame-subsampling-factor=3 'nnet3-am-copy --raw=true exp/chain/net/final.mdl - | nnet3-copy \\
          --edits="remove-output-nodes name=output;rename-node old-name=output-xent new-name=output" - - |' \\
          "ark:apply-cmvn-online --spk2utt=ark:data/train/spk2utt exp/chain/online/global_cmvn.stats \\
             scp:data/train/feats.scp ark:- |" \\
          'ark:| copy-matrix --apply-exp ark:- ark:online.ark'""", **env)
    assert "in 3 jobs" in said
    are_the_largest_of(dict(read_matrices(f"ark:{kaldi}/online.ark")), "exp/chain/essence_online")
    hard = bash(kaldi, "gunzip -c exp/chain/tree_sp/ali.1.gz | "
                       "ali-to-pdf exp/chain/tree_sp/final.mdl ark:- ark,t:- 2>/dev/null")
    ours = {utt: ali[::3].tolist() for utt, ali in read_int_vectors(f"scp:{kaldi}/exp/chain/essence/ali/ali.scp")}
    assert ours == {line.split()[0]: [int(p) for p in line.split()[1:]] for line in hard.splitlines()}

    # a student of ours in the graph of its tree; and, on targets of the tree at 10 ms, in that one's
    rng = np.random.default_rng(4)
    pdfs = int((kaldi / "exp" / "our_ali" / "num_pdfs").read_text())
    with MatrixWriter(f"ark,scp:{kaldi}/third.ark,{kaldi}/third.scp") as writer:
        for utt, rows in theirs.items():
            writer.write(utt, rng.dirichlet(np.full(pdfs, 0.1), size=len(rows)).astype(np.float32))
    if not (kaldi / "local").exists():
        (kaldi / "local").symlink_to(f"{KALDI}/egs/mini_librispeech/s5/local")
    small = "--set 'optim.epochs=1 model.hidden=16 data.heldout=0.2'"
    search = "--nj 2 --beam 6 --lattice-beam 1 --max-active 300 --scoring-opts '--min-lmwt 9 --max-lmwt 10'"
    bash(kaldi, f"""
        utils/subset_data_dir.sh --first data/train 9 data/nine
        {plugin}/train_student.sh {small} data/train exp/chain/essence exp/chain/student
        utils/mkgraph.sh --self-loop-scale 0.333 data/lang exp/chain/student exp/chain/student/graph
        {plugin}/decode_student.sh {search} exp/chain/student/graph data/nine exp/chain/student/decode""", **env)
    bash(kaldi, f"""
        {plugin}/essence_targets.sh --nj 2 --top-k 5 --frame-subsampling-factor 3 data/train exp/ali third.scp exp/third
        {plugin}/train_student.sh {small} data/train exp/third exp/third_student
        {plugin}/decode_student.sh {search} exp/graph data/nine exp/third_student/decode""", **env)
    frames = {utt: len(theirs[utt]) for utt in list(theirs)[:9]}
    assert ali_lengths(kaldi, "exp/chain/student/decode/lat.*.gz") == frames
    assert ali_lengths(kaldi, "exp/third_student/decode/lat.*.gz") == {utt: 3 * n for utt, n in frames.items()}
    for decode in ("chain/student", "third_student"):
        assert "%WER" in (kaldi / "exp" / decode / "decode" / "wer_10_0.0").read_text()
    done = subprocess.run([plugin / "decode_student.sh", "exp/graph", "data/nine", "exp/chain/student/decode2"],
                          cwd=kaldi,
                          capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 1 and "exp/graph is a graph for" in done.stderr


@pytest.mark.kaldi("tools/sph2pipe_v2.5/sph2pipe")
@pytest.mark.python
def test_the_swbd_recipe_prepares_made_up_corpora(tmp_path, shell):
    patch = Path(KALDI) / "egs" / "swbd" / "s5c" / "local" / "dict.patch"
    env = make_corpora(tmp_path / "ldc", patch, conversations=6)
    done = shell("recipes/swbd/check.sh", "--size", "made_up", env=env)
    assert done.returncode == 0, done.stderr
    data = tmp_path / "data"
    done = shell("recipes/swbd/prepare_data.sh", "--size", "made_up", data, env=env, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    count = {name: len((data / name / "text").read_text().splitlines())
             for name in ("train", "dev", "eval_swbd", "eval_che")}
    assert count == {"train": 64, "dev": 8, "eval_swbd": 40, "eval_che": 40}
    for name in count:
        text = (data / name / "text").read_text()
        assert text == text.lower().replace("_b-", "_B-") or "(" not in text
    words = {w for line in (data / "eval_che" / "text").read_text().splitlines() for w in line.split()[1:]}
    assert words <= set(WORDS) | {"i."}
    assert all(line.startswith((";;", "en_")) for line in (data / "eval_che" / "stm").read_text().splitlines())
    assert (data / "eval_swbd" / "glm").exists() and (data / "lm_text").stat().st_size > 0
    lexicon = dict(line.split(maxsplit=1) for line in (data / "dict" / "lexicon.txt").read_text().splitlines())
    assert {"<unk>", "[laughter]", "music"} <= set(lexicon)
    done = shell("local/bin/essence", "validate-data", "--run-pipes", "true", data / "eval_swbd", data / "train")
    assert done.returncode == 0, done.stderr
