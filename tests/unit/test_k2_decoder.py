"""The k2 decoder: against dynamic programming and kaldi-decoder, its lattices, confidences, sweeps and counts."""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from builders import ROOT
from builders.decoding import WIDE, WIDE_FLAGS, best_cost, decode, make_scores, read_hyp, read_n_best, run_k2, write

from essence_kd.decode.decoders.kaldi import KaldiDecoder
from essence_kd.decode.lattice import edit_distance, path_words
from essence_kd.decode.options import DecodeOptions

COUNT_IN_K2 = """
import json, sys
import numpy as np
from essence_kd.decode.decoders.k2 import K2Decoder
from essence_kd.decode.options import DecodeOptions
from essence_kd.hmm.graph import load_graph

graph, scores, settings = load_graph(sys.argv[1]), np.load(sys.argv[2])["scores"], json.loads(sys.argv[3])
options = DecodeOptions(**settings)
decoder = K2Decoder(graph, options)
fsa = decoder._fsa
json.dump({"counted": decoder.active_states([scores[:t + 1] for t in range(len(scores))]),
           "arcs": fsa.arcs.values()[:, :3].tolist(), "scores": fsa.scores.tolist()}, sys.stdout)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_scores(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def k2_decoded(corpus, k2, tmp_path_factory):
    """The corpus and the odd archive decoded by k2 at wide beams, with n-best lists and lattices."""
    out = tmp_path_factory.mktemp("k2")
    (out / "jobs").write_text(f"scp:{corpus.folder}/scores.scp {out}/all\nscp:{corpus.folder}/odd.scp {out}/odd\n")
    done = run_k2(k2, *WIDE_FLAGS, "--acoustic-scale", 0.5, "--word-insertion-penalty", 0.5,
                  "--n-best", 5, "--lattices",
                  "--jobs-file", out / "jobs", corpus.folder / "graph")
    assert done.returncode == 0, done.stderr
    return out, done.stderr


def test_both_decoders_say_the_same(corpus, k2_decoded):
    options = DecodeOptions(acoustic_scale=0.5, word_insertion_penalty=0.5, **WIDE)
    decoder = KaldiDecoder(corpus.graph, options)
    k2_words = read_hyp(k2_decoded[0] / "all")
    same = 0
    for utt, scores in corpus.scores.items():
        path = decoder.decode([scores])[0].path
        same += corpus.graph.words[path_words(corpus.graph, path)].tolist() == k2_words[utt]
    assert list(k2_words) == list(corpus.scores)
    assert same >= 0.995 * len(corpus.scores)


def test_k2_finds_the_best_path_there_is(corpus, k2_decoded):
    costs = dict(line.split() for line in (k2_decoded[0] / "all" / "nbest.cost").read_text().splitlines())
    for utt, scores in list(corpus.scores.items())[:15]:
        assert float(costs[f"{utt}-1"]) == pytest.approx(best_cost(corpus.graph, scores, 0.5, 0.5), abs=0.01)


def test_k2_n_best_starts_with_the_hypothesis_and_is_sorted(k2_decoded):
    folder = k2_decoded[0] / "all"
    hyp, lists = read_hyp(folder), read_n_best(folder)
    assert list(lists) == list(hyp)
    for utt, entries in lists.items():
        assert list(entries[0][1]) == hyp[utt]
        assert [c for c, _ in entries] == sorted(c for c, _ in entries)
        assert len({w for _, w in entries}) == len(entries)
    assert sum(map(len, lists.values())) > 2 * len(lists)


def test_k2_finds_the_sentences_that_kaldi_finds(corpus, k2_decoded, tmp_path):
    """Also those whose words lie on epsilon arcs beside each other."""
    few = list(corpus.scores)[:6]
    write(tmp_path / "s", {utt: corpus.scores[utt] for utt in few})
    assert decode(*WIDE_FLAGS, "--acoustic-scale", 0.5, "--word-insertion-penalty", 0.5, "--n-best", 5,
                  corpus.folder / "graph", f"ark:{tmp_path}/s.ark", tmp_path / "kaldi") == 0
    ours, theirs = read_n_best(k2_decoded[0] / "all"), read_n_best(tmp_path / "kaldi")
    for utt in few:
        assert [words for _, words in ours[utt]] == [words for _, words in theirs[utt]]
        assert [cost for cost, _ in ours[utt]] == pytest.approx([cost for cost, _ in theirs[utt]], abs=0.01)


def in_order(arcs):
    """Arcs (source, target, ...) so that all arcs into a state come before those out of it."""
    waiting, leaving, ready, answer = {}, {}, [0], []
    for arc in arcs:
        waiting[arc[1]] = waiting.get(arc[1], 0) + 1
        leaving.setdefault(arc[0], []).append(arc)
    while ready:
        for arc in leaving.get(ready.pop(), []):
            answer.append(arc)
            waiting[arc[1]] -= 1
            if not waiting[arc[1]]:
                ready.append(arc[1])
    assert len(answer) == len(arcs)  # no cycle, and every state can be reached
    return answer


def test_k2_confidences_are_posteriors_of_its_lattice(k2_decoded):
    """Forward and backward sums over the written lattice give the confidences of the CTM."""
    folder = k2_decoded[0] / "all"
    said = {}
    for line in (folder / "hyp.ctm").read_text().splitlines():
        utt, _, start, length, word, value = line.split()
        late = int(word[1:]) % 3 == 1  # this graph labels some words at their end
        place = float(start) + (float(length) if late else 0.0)
        said.setdefault(utt, []).append((word, round(place / 0.03), float(value)))
    values = [value for words in said.values() for _, _, value in words]
    assert max(values) <= 1 and min(values) < 0.9
    doubled = 0
    for block in (folder / "lat.txt").read_text().split("\n\n")[:10]:
        utt, *lines = block.split("\n")
        rows = [line.split("\t") for line in lines]
        final = {int(r[0]): float(r[1].split(",")[0]) for r in rows if len(r) == 2}
        arcs = in_order([(int(r[0]), int(r[1]), r[3], int(r[2]) > 0,
                          sum(s * float(x) for s, x in zip((1, 0.5), r[4].split(",")))) for r in rows if len(r) == 5])
        forward, backward, row = {0: 0.0}, {state: -cost for state, cost in final.items()}, {0: 0}
        for src, dst, word, emits, cost in arcs:
            forward[dst] = np.logaddexp(forward.get(dst, -np.inf), forward[src] - cost)
            row[dst] = row[src] + emits
            doubled += word != "<eps>" and not emits and dst not in final
        for src, dst, _, _, cost in reversed(arcs):
            backward[src] = np.logaddexp(backward.get(src, -np.inf), backward[dst] - cost)
        for word, place, value in said[utt]:
            if [w for w, _, _ in said[utt]].count(word) == 1:
                posterior = sum(np.exp(forward[s] - cost + backward[d] - backward[0])
                                for s, d, w, _, cost in arcs if w == word and abs(row[s] - place) <= 15)
                assert value == pytest.approx(min(posterior, 1.0), abs=5e-3)
    assert doubled  # some arcs carried two words


def test_k2_lattices_and_report(corpus, k2_decoded):
    folder, errors = k2_decoded
    blocks = (folder / "all" / "lat.txt").read_text().split("\n\n")
    assert [block.split("\n")[0] for block in blocks if block] == list(corpus.scores)
    report = json.loads((folder / "all" / "decode.json").read_text())
    assert report["decoder"] == "k2" and report["lattice_states_per_frame"] > 1 and report["rtf"] > 0
    assert (f" active states per frame, lattices of {report['lattice_states_per_frame']} states and "
            f"{report['lattice_arcs_per_frame']} arcs per frame") in errors


@pytest.mark.parametrize("settings", [
    {"beam": 4.0, "min_active": 1},
    {"beam": 2.0, "min_active": 25, "word_insertion_penalty": 1.0},  # a beam that widens
    {"beam": 15.0, "min_active": 5, "max_active": 40}])  # one that narrows
def test_k2_counts_active_states_as_the_search_prunes(corpus, k2, tmp_path, settings):
    """A search of our own, by the rule of k2's beam, holds as many states at every row."""
    scores = corpus.scores[max(corpus.scores, key=lambda utt: len(corpus.scores[utt]))]
    np.savez(tmp_path / "scores.npz", scores=scores)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "pytools"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([k2["ESSENCE_K2_PYTHON"], "-c", COUNT_IN_K2, corpus.folder / "graph" / "graph.npz",
                           tmp_path / "scores.npz", json.dumps(settings)], env=environment,
                           capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    src, dst, label = np.array(told["arcs"]).T
    least, most, beam = settings["min_active"], settings.get("max_active", 7000), settings["beam"]
    active, width, expected = {0: 0.0}, beam, []
    rows = np.full((2 * len(scores), scores.shape[1] + 1), -np.inf, np.float32)
    rows[::2, -1], rows[1::2, :-1] = 0, scores * np.float32(0.4)  # between rows states wait, or go along epsilons
    for row in rows:
        if len(active) > most:
            width = min(width, beam) * 0.8
        elif len(active) >= least:
            width = 0.8 * width + 0.2 * beam
        else:
            width = max(width, beam) * 1.25
        reached: dict = {}
        for arc in np.flatnonzero(np.isin(src, list(active)) & (label > 0)):
            value = active[src[arc]] + told["scores"][arc] + row[label[arc] - 1]
            reached[dst[arc]] = max(value, reached.get(dst[arc], -np.inf))
        best = max(reached.values())
        active = {state: value for state, value in reached.items() if value > best - width}
        expected.append(len(active))
    assert told["counted"] == expected[1::2] and len(set(expected[1::2])) > 5


def test_k2_tells_active_states(corpus, k2, k2_decoded, tmp_path):
    """The mean over at most so many rows, the same whatever the number of processes; none where none is wanted."""
    folder, errors = k2_decoded
    report = json.loads((folder / "all" / "decode.json").read_text())
    assert 32 <= report["active_states_counted_at"] <= 64 < report["num_frames"]
    assert report["active_states_per_frame"] >= report["lattice_states_per_frame"]
    assert f"about {report['active_states_per_frame']:.0f} active states per frame" in errors
    told = {}
    for name, more in {"one": ["--nj", 1], "two": ["--nj", 2], "none": ["--active-rows", 0]}.items():
        done = run_k2(k2, *more, "--beam", 8, corpus.folder / "graph",
                      f"scp:{corpus.folder}/scores.scp", tmp_path / name)
        assert done.returncode == 0, done.stderr
        told[name] = json.loads((tmp_path / name / "decode.json").read_text())["active_states_per_frame"]
    assert told["one"] == told["two"] > 1 and told["none"] is None


def test_k2_counts_empty_audio(k2_decoded):
    folder, errors = k2_decoded
    hyp = read_hyp(folder / "odd")
    assert list(hyp) == ["fine", "empty", "also"] and hyp["empty"] == [] and hyp["fine"]
    report = json.loads((folder / "odd" / "decode.json").read_text())
    assert report["empty_audio_utts"] == ["empty"] and report["no_path"] == 0
    assert "1 of 3 utterances have an empty hypothesis (no audio): empty" in errors


def test_k2_sweep_rescores_lattices_as_decoding_would(corpus, k2, tmp_path):
    """Every point of the grid from one lattice equals kaldi-decoder run at that point, but for pruning."""
    done = run_k2(k2, *WIDE_FLAGS, "--sweep", corpus.folder / "text", "--sweep-scales", "0.25,0.4", "--nj", 2,
                  "--sweep-penalties=-1,0,2", "--acoustic-scale", 0.3, corpus.folder / "graph",
                  f"scp:{corpus.folder}/scores.scp", tmp_path)
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "sweep.json").read_text())
    errors = {(p["acoustic_scale"], p["word_insertion_penalty"]): p["errors"] for p in table["points"]}
    assert len(errors) == 6 and table["best"]["errors"] == min(errors.values())
    for (scale, penalty), count in errors.items():
        options = DecodeOptions(acoustic_scale=scale, word_insertion_penalty=penalty, **WIDE)
        decoder = KaldiDecoder(corpus.graph, options)
        expected = 0
        for utt, scores in corpus.scores.items():
            path = decoder.decode([scores])[0].path
            expected += edit_distance(corpus.text[utt], corpus.graph.words[path_words(corpus.graph, path)].tolist())
        assert abs(count - expected) <= 0.01 * table["reference_words"]
    report = json.loads((tmp_path / "decode.json").read_text())
    assert report["acoustic_scale"] == table["best"]["acoustic_scale"]


def test_k2s_python_gets_nothing_that_lies_beside_an_installed_package(corpus, k2, tmp_path):
    """The package among another Python's packages, where pip puts it: k2's Python keeps its own NumPy."""
    site = tmp_path / "site-packages"
    shutil.copytree(ROOT / "pytools" / "essence_kd", site / "essence_kd", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "numpy").mkdir()
    (site / "numpy" / "__init__.py").write_text("raise ImportError('of another Python')\n")
    start = f"import sys; sys.path.append({str(site)!r}); from essence_kd.cli.main import command; command()"
    environment = {**os.environ, **k2, "KALDI_ROOT": ""}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", start, "decode", "--decoder", "k2", "--nj", "2", corpus.folder / "graph",
               f"ark:{corpus.folder}/odd.ark", tmp_path / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "decode.json").read_text())["decoder"] == "k2"
