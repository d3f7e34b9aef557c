"""Early stopping by the word error rate of a set that is really decoded."""
import itertools
import json

import pytest
from builders.graphs import pdf_graph, write_graph
from builders.training_data import make_data

from essence_kd.cli.main import main
from essence_kd.io.provenance import sha256_file
from essence_kd.io.text import read_words
from essence_kd.score.wer import score

C = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Data whose words are its pdfs, and a graph in which any may follow any other."""
    made = make_data(tmp_path_factory.mktemp("corpus"), utterances=6, num_pdfs=C, noise=0.6)
    (made.data / "text").write_text("".join(f"{utt} {' '.join(f'w{p}' for p, _ in itertools.groupby(ali[::3]))}\n"
                                            for utt, ali in made.alignment.items()))
    made.graph = write_graph(made.root / "graph", pdf_graph(C, sha256_file(made.ali / "tree.txt")))
    return made


def train(corpus, out, **more):
    sets = {"model.hidden": 24, "data.batch_frames": 300, "optim.epochs": 24, "optim.lr": 0.01,
            "early_stopping.metric": "dev_wer", "early_stopping.every": 12, "early_stopping.data": corpus.data,
            "early_stopping.graph": corpus.graph, "early_stopping.decoder": "kaldi", **more}
    return main(["train", *(w for k, v in sets.items() for w in ("--set", f"{k}={v}")), str(corpus.data),
                 str(corpus.ali), str(out)])


def test_the_figure_is_what_the_commands_find(corpus, tmp_path, capsys):
    assert train(corpus, tmp_path / "m") == 0
    info = json.loads((tmp_path / "m" / "info.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "m" / "progress.jsonl").read_text().splitlines()]
    figures = {line["epoch"]: line["dev_wer"] for line in lines if "dev_wer" in line}
    assert list(figures) == [12, 24] and figures[24] < 60
    assert info["best_epoch"] == min(figures, key=figures.get) and info["dev_wer"] == min(figures.values())
    assert f"dev WER {figures[24]:.2f} %" in capsys.readouterr().err
    assert not (tmp_path / "m" / "dev_wer").exists()
    scores = f"ark,scp:{tmp_path}/s.ark,{tmp_path}/s.scp"
    assert main(["forward", str(tmp_path / "m"), str(corpus.data), scores]) == 0
    words = ["decode", "--decoder", "kaldi", corpus.graph, f"scp:{tmp_path}/s.scp", tmp_path / "d"]
    assert main([str(word) for word in words]) == 0
    found = score(read_words(corpus.data / "text"), read_words(tmp_path / "d" / "hyp.txt")).total.wer
    assert found == pytest.approx(info["dev_wer"])


def test_what_is_missing_or_does_not_fit(corpus, tmp_path, capsys):
    def said(**more):
        assert train(corpus, tmp_path / "m", **more) == 1
        return capsys.readouterr().err.splitlines()[-1]

    nothing = said(**{"early_stopping.graph": tmp_path})
    assert f"early_stopping.graph is '{tmp_path}': there is no graph.npz in it" in nothing
    assert "there is no feats.scp in it" in said(**{"early_stopping.data": tmp_path})
    unknown = said(**{"early_stopping.decoder": "htk"})
    assert "early_stopping.decoder: unknown decoder 'htk' (known: k2, kaldi" in unknown
    assert "early_stopping.acoustic_scale must be above 0" in said(**{"early_stopping.acoustic_scale": 0})
    other = corpus.root / "other"
    other.mkdir()
    (other / "words.txt").write_text("<eps> 0\n")
    (other / "graph.npz").write_text("no graph")
    broken = said(**{"early_stopping.graph": other, "early_stopping.every": 1})
    assert "decoding for early stopping failed: essence decode: " in broken
