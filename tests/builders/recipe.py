"""A recipe directory with the least that the verbs and the Python API go by, two utterances of which are known."""
import numpy as np
from builders.graphs import pdf_graph, write_graph

from essence_kd.cli.main import main
from essence_kd.io.posterior import PosteriorWriter
from essence_kd.io.provenance import sha256_file
from essence_kd.io.tables import IntVectorWriter, MatrixWriter

PDFS = 8
WORDS = {"utt1": [2, 5, 1, 7], "utt2": [5, 2, 6]}  # pdfs, 12 frames each
LITTLE = ["model.hidden=16", "optim.epochs=1", "data.cmn=none", "data.batch_frames=200"]


def make_recipe(root):
    """data/eval (features, text), exp/ali, exp/post.scp (two classes per row), exp/graph; the folder itself."""
    data, exp = root / "data" / "eval", root / "exp"
    data.mkdir(parents=True)
    (exp / "ali").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with MatrixWriter(f"ark,scp:{data}/feats.ark,{data}/feats.scp") as feats, \
            IntVectorWriter(f"ark,scp:{exp}/ali/ali.ark,{exp}/ali/ali.scp") as alignments, \
            PosteriorWriter(f"ark,scp:{exp}/post.ark,{exp}/post.scp") as soft:
        for utt, pdfs in WORDS.items():
            ali = np.repeat(np.array(pdfs, np.int32), 12)
            feats.write(utt, (4 * np.eye(PDFS)[ali] + rng.normal(size=(len(ali), PDFS))).astype(np.float32))
            alignments.write(utt, ali)
            soft.write(utt, np.stack([ali[::3], 7 - ali[::3]], axis=1), np.tile([0.75, 0.25], (len(ali) // 3, 1)))
    (data / "text").write_text("".join(f"{utt} w{' w'.join(map(str, pdfs))}\n" for utt, pdfs in WORDS.items()))
    (data / "utt2spk").write_text("".join(f"{utt} {utt}\n" for utt in WORDS))
    (exp / "ali" / "num_pdfs").write_text(f"{PDFS}\n")
    (exp / "ali" / "priors.txt").write_text(f"{1 / PDFS}\n" * PDFS)
    (exp / "ali" / "tree.txt").write_text("".join(f"{pdf} {pdf + 1} 0\n" for pdf in range(PDFS)))
    write_graph(exp / "graph", pdf_graph(PDFS, sha256_file(exp / "ali" / "tree.txt")))
    return root


def train_student(root):
    """exp/student of a recipe directory, trained for an epoch."""
    settings = [word for value in LITTLE for word in ("--set", value)]
    data, ali = str(root / "data" / "eval"), str(root / "exp" / "ali")
    assert main(["train", *settings, "--dev-data", data, "--dev-ali", ali, "--soft", str(root / "exp" / "post.scp"),
                 data, ali, str(root / "exp" / "student")]) == 0
