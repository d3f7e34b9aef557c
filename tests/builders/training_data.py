"""A small data directory with features, alignments and soft targets for the tests of the acoustic models."""
import subprocess
from pathlib import Path

import numpy as np
from builders import ROOT, plans, table

from essence_kd.io.posterior import PosteriorWriter
from essence_kd.io.tables import IntVectorWriter, MatrixWriter


class Corpus:
    """Paths (data, ali) and contents: frames, speaker, alignment, probs (R, C) by utterance."""

    def __init__(self, root):
        self.data, self.ali = Path(root) / "data", Path(root) / "ali"
        self.frames, self.speaker, self.alignment, self.probs = {}, {}, {}, {}
        self.root = Path(root)

    def post(self, k):
        """The scp of the k largest probabilities."""
        scp = self.root / f"post{k}.scp"
        with PosteriorWriter(f"ark,scp:{self.root}/post{k}.ark,{scp}") as writer:
            for utt, probs in self.probs.items():
                ids = np.argsort(-probs, axis=1, kind="stable")[:, :k]
                writer.write(utt, ids.astype(np.int32), np.take_along_axis(probs, ids, axis=1))
        return scp

    def dense(self):
        scp = self.root / "full.scp"
        with MatrixWriter(f"ark,scp:{self.root}/full.ark,{scp}") as writer:
            for utt, probs in self.probs.items():
                writer.write(utt, probs)
        return scp


def make_data(root, *, utterances=6, num_pdfs=12, bins=8, seed=0, mean_segments=14, noise=1.0, prefix="u"):
    """Three speeds of each utterance; a pdf has a mean vector, and feature 0 of a frame is its number."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(num_pdfs, bins)) * 2
    corpus = Corpus(root)
    corpus.data.mkdir(parents=True)
    corpus.ali.mkdir()
    uniq = {}
    with MatrixWriter(f"ark,scp:{corpus.data}/feats.ark,{corpus.data}/feats.scp") as feats, \
            IntVectorWriter(f"ark,scp:{corpus.ali}/ali.ark,{corpus.ali}/ali.scp") as alignments:
        for i in range(utterances):
            segments = rng.integers(0, num_pdfs, size=max(2, int(rng.normal(mean_segments, 5))))
            for speed in ("0.9", "1.0", "1.1"):
                utt = f"sp{speed}-s{i % 2}-{prefix}{i:02d}"
                ali = np.repeat(segments, rng.integers(3, 10, size=len(segments))).astype(np.int32)
                x = (means[ali] + noise * rng.normal(size=(len(ali), bins))).astype(np.float32)
                x[:, 0] = np.arange(len(ali))
                feats.write(utt, x)
                alignments.write(utt, ali)
                p = rng.random((-(-len(ali) // 3), num_pdfs)) + 0.01
                p[np.arange(len(p)), ali[::3]] += 5.0
                corpus.probs[utt] = (p / p.sum(1, keepdims=True)).astype(np.float32)
                corpus.frames[utt], corpus.speaker[utt] = len(ali), f"sp{speed}-s{i % 2}"
                corpus.alignment[utt], uniq[utt] = ali, f"{prefix}{i:02d}"
    (corpus.data / "utt2spk").write_text("".join(f"{u} {s}\n" for u, s in corpus.speaker.items()))
    (corpus.data / "utt2uniq").write_text("".join(f"{u} {o}\n" for u, o in uniq.items()))
    (corpus.ali / "num_pdfs").write_text(f"{num_pdfs}\n")
    counts = np.bincount(np.concatenate(list(corpus.alignment.values())), minlength=num_pdfs)
    (corpus.ali / "priors.txt").write_text("".join(f"{c / counts.sum():.8f}\n" for c in counts))
    (corpus.ali / "tree.txt").write_text("".join(f"{c} {c // 3 + 1} {c % 3}\n" for c in range(num_pdfs)))
    return corpus


class TrainingStage:
    """Stages that train and answer, on a small corpus.

    ``folder`` is the WORK_DIR, with data/train_sp_hires, exp/ali and plan.json. Systems are ``a``, which learns from
    hard labels, and ``b``, whose targets exp/soft/post.scp are nobody's; ``changes`` are fields of the plan.
    """

    def __init__(self, folder, environment, **changes):
        self.corpus, self.exp = make_data(Path(folder) / "corpus", utterances=4), Path(folder) / "exp"
        self.environment = {**environment, "WORK_DIR": str(folder)}
        self.train = Path(folder) / "data" / "train_sp_hires"
        systems = [plans.make_system("a", "teacher", model=plans.STUDENT, seed=1), plans.student("b", "soft", "a")]
        wide = {"teachers": ["a"], "stage": 6, "sets": ["train"]}
        targets = [plans.make_target("soft", sets=["train"]), plans.make_target("full", "dense", **wide),
                   plans.make_target("wide", scp="posteriors/wide.scp", select="wide", k=None, mass=None, **wide)]
        self.plan = self.exp / "plan.json"
        plans.write(plans.make_plan(self.exp, **{"data": str(self.train.parent), "systems": systems, "targets": targets,
                                                 "post_keep": 4, **changes}))
        (self.exp / "soft").mkdir()
        (self.exp / "soft" / "post.scp").write_text("nobody nowhere.ark:7\n")
        self.train.parent.mkdir()
        self.train.symlink_to(self.corpus.data)
        (self.exp / "ali").symlink_to(self.corpus.ali)
        for place in (self.corpus.data, self.corpus.ali, self.exp / "soft"):
            (place / ".marker").write_text("done made\n")

    def script(self, name, *options, roles=()):
        """Runs a stage's script on the plan."""
        return subprocess.run([name, *options, str(self.plan), *roles], cwd=ROOT, text=True, env=self.environment,
                              capture_output=True, timeout=900)

    def train_models(self, command, *options, roles=("teacher",)):
        return self.script("local/train_models.sh", "--cmd", command, *options, roles=roles)

    def one_job_ends_well_and_one_fails(self, command):
        """Through a runner of Kaldi's that hands jobs nothing of the environment but PATH; the text of their logs."""
        done = self.train_models(command, "--nj", "1", roles=("teacher", "student"))
        logs = [(self.exp / "log" / f"train.{n}.log").read_text() for n in (1, 2)]
        assert done.returncode == 1 and ".pl: 1 / 2 failed" in done.stderr, done.stderr + "".join(logs)
        assert done.stderr.endswith(f"a training failed; logs: {self.exp}/log/train.2.log\n")
        assert "with status 0" in logs[0] and "with status 1" in logs[1] and "post.scp: " in logs[1]
        assert (self.exp / "a" / ".marker").read_text().startswith("done ")
        assert f"a: {self.exp}/a/final.pt" in done.stdout
        return logs


def untrained_models(folder, num_pdfs):
    """Two untrained models of different kinds, and features."""
    import torch
    from essence_kd.am.models.registry import build_model
    from essence_kd.io.settings import dump_settings

    rng = np.random.default_rng(0)
    data = folder / "data"
    data.mkdir()
    table(MatrixWriter, data / "feats", {f"utt{i}": rng.standard_normal((n, 8)).astype(np.float32)
                           for i, n in enumerate((31, 7, 90, 1, 44, 12))})
    directories = []
    for name, arch, cmn, options in (("a", "tdnn", "none", {"hidden": 24, "bottleneck": 12}),
                                     ("b", "blstm", "utterance", {"cells": 10})):
        torch.manual_seed(len(directories))
        model = build_model(arch, options, feat_dim=8, num_pdfs=num_pdfs, frame_subsampling_factor=3)
        with torch.no_grad():
            model.output.weight.mul_(20)
        directory = folder / name
        directory.mkdir()
        torch.save(model.state_dict(), directory / "final.pt")
        dump_settings({"arch": arch, "model": options, "feat_dim": 8, "num_pdfs": num_pdfs,
                       "frame_subsampling_factor": 3, "cmn": cmn, "tree_hash": "cafe"}, directory / "model.yaml")
        directories.append(str(directory))
    return directories, f"scp:{data}/feats.scp"
