"""Decoding: exactness against dynamic programming, word times, sweeps, rescoring, and bad input."""
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from builders import ROOT
from builders.decoding import WIDE, WIDE_FLAGS, best_cost, decode, make_scores, read_hyp, read_n_best, run_k2, write
from builders.graphs import loop_graph, random_path, scores_of

from essence_kd.cli.main import main
from essence_kd.decode.checks import cut_batches
from essence_kd.decode.decoder import Job
from essence_kd.decode.decoders.kaldi import KaldiDecoder
from essence_kd.decode.lattice import Entry, Hypothesis, label_frames, n_best, path_cost, path_word_spans, path_words
from essence_kd.decode.options import DecodeOptions
from essence_kd.decode.pieces import first_rows, joined_lists, silence_pdfs
from essence_kd.decode.runner import open_decoder
from essence_kd.decode.sweeps import sweep_table
from essence_kd.hmm.graph import load_graph, save_graph
from essence_kd.hmm.lm import estimate, read_arpa, score, write_arpa
from essence_kd.io.provenance import write_sidecar


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_scores(tmp_path_factory.mktemp("corpus"))


# ------------------------------------------------------------------------------------------------------ kaldi-decoder

@pytest.mark.parametrize("penalty", [-1.0, 0.0, 2.5])
def test_kaldi_finds_the_best_path_there_is(corpus, penalty):
    options = DecodeOptions(acoustic_scale=0.7, word_insertion_penalty=penalty, **WIDE)
    decoder = KaldiDecoder(corpus.graph, options)
    for scores in list(corpus.scores.values())[:12]:
        path = decoder.decode([scores])[0].path
        assert path_cost(corpus.graph, path, scores, 0.7, penalty) == pytest.approx(
            best_cost(corpus.graph, scores, 0.7, penalty), abs=0.01)
        assert corpus.graph.src[path[0]] == 0
        assert np.array_equal(corpus.graph.dst[path[:-1]], corpus.graph.src[path[1:]])


def test_kaldi_lattices_hold_the_best_path_and_its_confidences(corpus):
    decoder = KaldiDecoder(corpus.graph, DecodeOptions(acoustic_scale=0.5, beam=20.0, max_active=1000000))
    for scores in list(corpus.scores.values())[:4]:
        answer = decoder.decode([scores], lattices=True)[0]
        (cost, path), = n_best(answer.lattice, corpus.graph, 1, 0.5)
        assert cost == pytest.approx(path_cost(corpus.graph, path, scores, 0.5), abs=1e-2)
        assert cost == pytest.approx(path_cost(corpus.graph, answer.path, scores, 0.5), abs=1e-2)
        assert len(answer.occurrences.word) >= len(path_words(corpus.graph, path))
        assert set(label_frames(corpus.graph, path)) <= set(answer.occurrences.frame.tolist())


def test_the_files_of_a_decoded_set(corpus, tmp_path, capsys):
    assert decode("--acoustic-scale", 1, corpus.folder / "graph", f"scp:{corpus.folder}/scores.scp", tmp_path) == 0
    hyp = read_hyp(tmp_path)
    assert list(hyp) == list(corpus.scores)  # the order of the scores, none left out
    right = sum(hyp[utt] == words for utt, words in corpus.text.items())
    assert right >= 20  # of 40: most utterances come out as they were said
    by_utt = {}
    for line in (tmp_path / "hyp.ctm").read_text().splitlines():
        utt, channel, start, length, word, confidence = line.split()
        by_utt.setdefault(utt, []).append((float(start), float(length), word))
        assert channel == "1" and confidence == "1.000"
    for utt, words in hyp.items():
        assert [w for _, _, w in by_utt.get(utt, [])] == words
        end = 0.0
        for start, length, _ in by_utt.get(utt, []):
            assert start >= end - 1e-6 and length > 0
            end = start + length
        assert end <= 0.03 * len(corpus.scores[utt]) + 1e-6
    report = json.loads((tmp_path / "decode.json").read_text())
    rows = sum(map(len, corpus.scores.values()))
    assert report["decoder"] == "kaldi" and report["num_utts"] == 40 and report["num_frames"] == rows
    assert report["audio_seconds"] == pytest.approx(rows * 0.03, abs=1e-3)
    assert report["rtf"] > 0 and report["no_path"] == report["empty_audio"] == 0
    assert report["num_words"] == sum(map(len, hyp.values())) and report["tree_hash"] == "f00d"
    assert report["lattice_states_per_frame"] is None  # best paths alone
    assert report["active_states_per_frame"] is None  # kaldi-decoder does not tell
    told = capsys.readouterr().err
    assert f"{tmp_path}: 40 utterances" in told and "lattices" not in told


def test_word_times_are_those_of_the_true_path(corpus, tmp_path):
    """Scores that leave no doubt: every word begins and ends where it was put."""
    rng = np.random.default_rng(9)
    path = random_path(corpus.graph, 6, rng)
    start, length = path_word_spans(corpus.graph, path)
    write(tmp_path / "s", {"u": scores_of(corpus.graph, path, rng, strength=40.0)})
    assert decode("--acoustic-scale", 1, corpus.folder / "graph", f"ark:{tmp_path}/s.ark", tmp_path / "out") == 0
    times = [line.split()[2:4] for line in (tmp_path / "out" / "hyp.ctm").read_text().splitlines()]
    assert [(float(s), float(d)) for s, d in times] == [
        pytest.approx((0.03 * s, 0.03 * d), abs=1e-3) for s, d in zip(start.tolist(), length.tolist())]


def test_ctm_in_times_of_recordings(corpus, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "wav.scp").write_text("call-A /a.wav\ncall-B /b.wav\n")
    (data / "utt2spk").write_text("also s\nempty s\nfine s\n")
    (data / "segments").write_text("also call-A 1.50 9.00\nempty call-A 20.00 20.50\nfine call-B 100.25 110.00\n")
    (data / "reco2file_and_channel").write_text("call-A call A\ncall-B call B\n")
    graph, scores = corpus.folder / "graph", f"scp:{corpus.folder}/odd.scp"
    assert decode("--acoustic-scale", 1, graph, scores, tmp_path / "plain") == 0
    assert decode("--acoustic-scale", 1, "--data", data, graph, scores, tmp_path / "placed") == 0
    plain = [line.split() for line in (tmp_path / "plain" / "hyp.ctm").read_text().splitlines()]
    placed = [line.split() for line in (tmp_path / "placed" / "hyp.ctm").read_text().splitlines()]
    where = {"also": ("call", "A", 1.5), "fine": ("call", "B", 100.25)}
    (data / "segments").write_text("also call-A 1.50 9.00\n")
    (data / "utt2spk").write_text("also s\n")
    assert decode("--data", data, graph, scores, tmp_path / "lost") == 1  # told before anything is decoded
    assert "data: utterance 'fine' of" in capsys.readouterr().err and not (tmp_path / "lost").exists()
    expected = sorted((*where[u][:2], round(float(s) + where[u][2], 3), float(d), w) for u, _, s, d, w, _ in plain)
    assert [(r, c, round(float(s), 3), float(d), w) for r, c, s, d, w, _ in placed] == expected


def test_processes_and_several_sets_change_nothing(corpus, tmp_path):
    graph, folder = corpus.folder / "graph", corpus.folder
    (tmp_path / "sweep.json").write_text(json.dumps({"best": {"acoustic_scale": 0.8, "word_insertion_penalty": 1.0}}))
    (tmp_path / "jobs").write_text(f"# two sets\nscp:{folder}/scores.scp {tmp_path}/a\n"
                                   f"'ark:cat {folder}/odd.ark |' {tmp_path}/b {tmp_path}/sweep.json\n")
    assert decode("--nj", 2, "--batch-rows", 100, "--jobs-file", tmp_path / "jobs", graph) == 0
    assert decode(graph, f"scp:{folder}/scores.scp", tmp_path / "c") == 0
    assert decode("--scale-from", tmp_path / "sweep.json", graph, f"ark:{folder}/odd.ark", tmp_path / "d") == 0
    for one, other in (("a", "c"), ("b", "d")):
        for name in ("hyp.txt", "hyp.ctm"):
            assert (tmp_path / one / name).read_text() == (tmp_path / other / name).read_text()
    assert json.loads((tmp_path / "b" / "decode.json").read_text())["acoustic_scale"] == 0.8


def test_settings_file_and_options(corpus, tmp_path):
    (tmp_path / "c.yaml").write_text("acoustic_scale: 0.9\nbeam: 9\n")
    assert decode("--config", tmp_path / "c.yaml", "--beam", 11, corpus.folder / "graph",
                  f"ark:{corpus.folder}/odd.ark", tmp_path / "o") == 0
    report = json.loads((tmp_path / "o" / "decode.json").read_text())
    assert (report["acoustic_scale"], report["beam"]) == (0.9, 11)
    assert decode("--config", ROOT / "conf" / "decode.yaml", corpus.folder / "graph",
                  f"ark:{corpus.folder}/odd.ark", tmp_path / "p") == 0
    report = json.loads((tmp_path / "p" / "decode.json").read_text())
    assert (report["frame_shift_ms"], report["repeat_rows"]) == (30, 1)  # what the graph expects
    for name, value in dataclasses.asdict(DecodeOptions()).items():  # the file changes no default
        assert name in ("frame_shift_ms", "repeat_rows") or report.get(name, value) == value


def test_the_help_tells_every_default(capsys):
    with pytest.raises(SystemExit):
        decode("--help")
    told = " ".join(capsys.readouterr().out.partition("settings:")[2].split())
    for name, value in dataclasses.asdict(DecodeOptions()).items():
        shown = ",".join(map(str, value)) if isinstance(value, list) else f"{value:g}"
        option = told.partition(f"--{name.replace('_', '-')} ")[2]
        assert option.partition("(default: ")[2].startswith(f"{shown})"), name


# ---------------------------------------------------------------------------------------------- a decoder of one's own

MINE = """
import numpy as np

from essence_kd.decode.decoder import Decoded, Decoder, register_decoder


@register_decoder
class Viterbi(Decoder):
    "Every path of a small graph, nothing pruned."

    name = "mine"

    def decode(self, batch, *, lattices=False):
        return [Decoded(self.path(scores)) for scores in batch]

    def path(self, scores):
        graph, scale = self.graph, self.options.acoustic_scale
        cost = graph.weight + self.options.word_insertion_penalty * (graph.olabel > 0)
        arcs = list(zip(graph.src.tolist(), graph.dst.tolist(), graph.ilabel.tolist(), cost.tolist()))
        now = {0: (0.0, None)}  # state -> cost, and the arcs to it as a linked list
        epsilons = [None] * 4  # chains of them are short
        for row in epsilons + [r for row in scores.tolist() for r in [row] + epsilons]:
            then = now if row is None else {}
            for number, (src, dst, label, cost) in enumerate(arcs):
                if src in now and (label > 0) == (row is not None):
                    total = now[src][0] + cost - (scale * row[label - 1] if label else 0)
                    if dst not in then or total < then[dst][0] - 1e-9:
                        then[dst] = total, (number, now[src][1])
            now = then
        chain, path = min((total + graph.final[state], chain) for state, (total, chain) in now.items())[1], []
        while chain:
            number, chain = chain
            path.append(number)
        return np.array(path[::-1])
"""


def test_a_plugin_adds_a_decoder(corpus, tmp_path):
    """One module, named in ESSENCE_PLUGINS: batches, processes, sweeps and files are there."""
    (tmp_path / "my_decoders.py").write_text(MINE.lstrip())
    write(tmp_path / "s", {utt: corpus.scores[utt] for utt in list(corpus.scores)[:5]})
    (tmp_path / "text").write_text("".join((corpus.folder / "text").read_text().splitlines(keepends=True)[:5]))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'pytools'}:{tmp_path}", "ESSENCE_PLUGINS": "my_decoders"}
    common = ["--sweep", tmp_path / "text", "--sweep-scales", "0.5", "--sweep-penalties", "0,1",
              corpus.folder / "graph", f"scp:{tmp_path}/s.scp"]

    def mine(*arguments):
        return subprocess.run([sys.executable, "-m", "essence_kd", "decode", "--decoder", "mine", *map(str, arguments)],
                              env=environment, capture_output=True, text=True)

    done = mine("--nj", 2, *common, tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    assert decode(*WIDE_FLAGS, *common, tmp_path / "kaldi") == 0
    for name in ("hyp.txt", "hyp.ctm"):
        assert (tmp_path / "mine" / name).read_text() == (tmp_path / "kaldi" / name).read_text()
    report, table = (json.loads((tmp_path / "mine" / name).read_text()) for name in ("decode.json", "sweep.json"))
    assert report["decoder"] == table["decoder"] == "mine" and len(table["points"]) == 2
    model = language_model(tmp_path / "one.arpa", corpus, 1)
    done = mine("--old-lm", model, "--lm-scale", 2, corpus.folder / "graph", f"scp:{tmp_path}/s.scp", tmp_path / "old")
    assert done.returncode == 0, done.stderr
    assert "5 of 5 utterances have words of the graph's language model (no lattice to rescore): utt" in done.stderr
    assert len(json.loads((tmp_path / "old" / "decode.json").read_text())["unrescored_utts"]) == 5
    environment["ESSENCE_PLUGINS"] = ""
    done = mine(*common, tmp_path / "none")
    assert done.returncode == 1 and "unknown decoder 'mine' (known: k2, kaldi, kaldi-lattice)" in done.stderr


def test_kaldi_sweep_tries_scales_then_penalties(corpus, tmp_path):
    assert decode("--sweep", corpus.folder / "text", "--sweep-scales", "0.02,0.5,1", "--sweep-penalties=-1,0,1",
                  corpus.folder / "graph", f"scp:{corpus.folder}/scores.scp", tmp_path) == 0
    table = json.loads((tmp_path / "sweep.json").read_text())
    assert 5 <= len(table["points"]) <= 7  # three scales, two more penalties, the scales beside the best
    fewest = min(p["errors"] for p in table["points"])
    assert table["best"]["errors"] == fewest and table["reference_words"] == sum(map(len, corpus.text.values()))
    assert read_hyp(tmp_path).keys() == corpus.scores.keys()
    report = json.loads((tmp_path / "decode.json").read_text())
    assert report["acoustic_scale"] == table["best"]["acoustic_scale"]
    assert decode("--sweep", corpus.folder / "text", "--sweep-only", "--sweep-scales", "0.02,0.5,1",
                  "--sweep-penalties=-1,0,1", corpus.folder / "graph", f"scp:{corpus.folder}/scores.scp",
                  tmp_path / "only") == 0
    assert [path.name for path in (tmp_path / "only").iterdir()] == ["sweep.json"]
    assert json.loads((tmp_path / "only" / "sweep.json").read_text())["points"] == table["points"]
    import kaldialign
    errors = sum(kaldialign.edit_distance(corpus.text[utt], words)["total"]
                 for utt, words in read_hyp(tmp_path).items())
    assert errors == fewest


def test_reference_without_scores_counts_as_deleted(corpus, tmp_path, capsys):
    graph, scores = corpus.folder / "graph", f"scp:{corpus.folder}/scores.scp"
    text = (corpus.folder / "text").read_text()
    (tmp_path / "more").write_text(text + "utt99 w1 w2 w3\n")
    for name, reference in (("a", corpus.folder / "text"), ("b", tmp_path / "more")):
        assert decode("--sweep", reference, "--sweep-scales", "0.5", "--sweep-penalties", "0", graph, scores,
                      tmp_path / name) == 0
    one, other = (json.loads((tmp_path / n / "sweep.json").read_text())["best"]["errors"] for n in "ab")
    assert other == one + 3
    assert "1 reference utterances have no scores and count as deletions: utt99" in capsys.readouterr().err


def test_pooled_sweep_adds_the_errors_of_all_sets(corpus, tmp_path):
    half = dict(list(corpus.scores.items())[:15])
    write(tmp_path / "half", half)
    (tmp_path / "jobs").write_text(f"ark:{corpus.folder}/scores.ark {tmp_path}/a\n"
                                   f"ark:{tmp_path}/half.ark {tmp_path}/b\n")
    assert decode("--sweep", corpus.folder / "text", "--sweep-scales", "0.02,0.6", "--sweep-penalties", "0",
                  "--pooled", tmp_path / "all.json", "--jobs-file", tmp_path / "jobs", corpus.folder / "graph") == 0
    tables = [json.loads((tmp_path / p).read_text()) for p in ("a/sweep.json", "b/sweep.json", "all.json")]
    errors = [{p["acoustic_scale"]: p["errors"] for p in t["points"]} for t in tables]
    assert all(errors[0][s] + errors[1][s] == errors[2][s] for s in (0.02, 0.6))
    assert tables[2]["best"]["acoustic_scale"] == 0.6


# ----------------------------------------------------------------------------------------------- another language model

def language_model(path, corpus, order):
    """A model of the corpus' own text, written as ARPA."""
    sentences = list(corpus.text.values())
    write_arpa(path, estimate(sentences, order, sorted({w for s in sentences for w in s})))
    return path


def test_a_lattice_rescored_is_every_sentence_rescored(corpus, tmp_path):
    """Words, costs and lists, against each sentence of the lattice by itself."""
    old, new = (language_model(tmp_path / f"{n}.arpa", corpus, n) for n in (1, 3))
    few = {utt: corpus.scores[utt] for utt in list(corpus.scores)[:8]}
    write(tmp_path / "s", few)
    common = ["--beam", 20, "--max-active", 100000, "--acoustic-scale", 0.5, "--output-beam", 3, "--n-best", 100000]
    where = [corpus.folder / "graph", f"ark:{tmp_path}/s.ark"]
    assert decode(*common, *where, tmp_path / "plain") == 0
    common[-1] = 15
    assert decode(*common, "--old-lm", old, "--new-lm", new, "--lattices", *where, tmp_path / "new") == 0
    plain, rescored = read_n_best(tmp_path / "plain"), read_n_best(tmp_path / "new")
    models, changed = (read_arpa(old), read_arpa(new)), 0
    floors = [model.orders[0].logprob[model.orders[0].logprob > -90].min() for model in models]
    for utt, entries in plain.items():
        expected = []
        for cost, words in entries:
            logs = [score(model, [list(words)]) for model in models]
            before, after = (total + floor * unknown for (total, _, unknown), floor in zip(logs, floors))
            expected.append((cost + np.log(10) * (before - after), words))
        expected.sort()
        assert [c for c, _ in rescored[utt]] == pytest.approx([c for c, _ in expected[:15]], abs=1e-3)
        assert list(expected[0][1]) == read_hyp(tmp_path / "new")[utt]
        changed += entries[0][1] != expected[0][1]
    assert changed
    confidences = [float(line.split()[5]) for line in (tmp_path / "new" / "hyp.ctm").read_text().splitlines()]
    assert min(confidences) < 0.99 and max(confidences) <= 1
    report = json.loads((tmp_path / "new" / "decode.json").read_text())
    told = report["rescoring"]
    assert told.pop("unknown_words") > 0
    assert told == {"method": "lattice", "old_lm": str(old), "new_lm": str(new), "order": 3, "lm_scale": 1}
    assert json.loads((tmp_path / "plain" / "decode.json").read_text())["rescoring"] is None


def test_a_language_model_of_another_corpus(corpus, tmp_path, capsys):
    ours = language_model(tmp_path / "ours.arpa", corpus, 1)
    write_arpa(tmp_path / "zoo.arpa", estimate([["zebra", "ape"]], 1))
    (tmp_path / "never.arpa").write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n-99\t<s>\n\n\\end\\\n")
    for old, new, bad in ((ours, "zoo", "zoo"), (tmp_path / "zoo.arpa", "ours", "zoo"), (ours, "never", "never")):
        message = refused(capsys, "--old-lm", old, "--new-lm", tmp_path / f"{new}.arpa", corpus.folder / "graph",
                          f"scp:{corpus.folder}/scores.scp", tmp_path / "out")
        assert f"{bad}.arpa: has none of the words of" in message and not (tmp_path / "out").exists()


def test_language_model_scale(corpus, tmp_path):
    """The model in the graph weighted anew: each sentence's cost changes by (scale - 1) times the model's cost."""
    old = tmp_path / "all.arpa"
    write_arpa(old, estimate(list(corpus.text.values()), 2, corpus.graph.words[1:].tolist()))
    write(tmp_path / "s", {utt: corpus.scores[utt] for utt in list(corpus.scores)[:8]})
    common = ["--beam", 20, "--max-active", 100000, "--acoustic-scale", 0.5, "--output-beam", 3]
    where = [corpus.folder / "graph", f"ark:{tmp_path}/s.ark"]
    assert decode(*common, "--n-best", 100000, *where, tmp_path / "plain") == 0
    assert decode(*common, "--n-best", 15, "--old-lm", old, "--lm-scale", 4, *where, tmp_path / "scaled") == 0
    plain, scaled, model, changed = read_n_best(tmp_path / "plain"), read_n_best(tmp_path / "scaled"), read_arpa(old), 0
    for utt, entries in plain.items():
        costs = {words: cost - 3 * np.log(10) * score(model, [list(words)])[0] for cost, words in entries}
        best = sorted((cost, words) for words, cost in costs.items())[:15]
        assert [cost for cost, _ in scaled[utt]] == pytest.approx([cost for cost, _ in best], abs=1e-2)
        assert scaled[utt][0][1] == best[0][1]
        changed += scaled[utt][0][1] != entries[0][1]
    assert changed
    assert json.loads((tmp_path / "scaled" / "decode.json").read_text())["rescoring"]["lm_scale"] == 4


# --------------------------------------------------------------------------------------------------------- long audio

@pytest.mark.parametrize("length", [1, 99, 100, 101, 150, 199, 201, 1234])
def test_pieces_are_neither_long_nor_tiny(length):
    scores = np.random.default_rng(length).normal(size=(length, 6)).astype(np.float32)
    for silence in ([], [0, 3], range(6)):
        starts = first_rows(scores, np.array(silence, np.int64), 100, 9)
        lengths = np.diff([*starts, length])
        assert starts[0] == 0 and max(lengths) <= 100 and (len(starts) > 1) == (length > 100)
        assert min(lengths) >= min(25, length)


def test_an_interrupt_does_not_wait_for_what_processes_are_at(conversation):
    folder, _, _ = conversation
    with pytest.raises(KeyboardInterrupt):
        with open_decoder("kaldi", folder / "graph", DecodeOptions(), nj=2) as decoder:
            processes = [member.process for member in decoder.workers._started()]
            raise KeyboardInterrupt
    assert [process.returncode for process in processes] == [-signal.SIGTERM] * 2


def test_a_terminated_decoding_leaves_no_process_behind(conversation, k2, tmp_path):
    folder, _, _ = conversation
    (tmp_path / "jobs").write_text(f"ark:{folder}/long.ark {tmp_path}/a\n'ark:sleep 100 |' {tmp_path}/b\n")
    process = subprocess.Popen([sys.executable, "-m", "essence_kd", "decode",
                                "--decoder", "k2", "--nj", "2", "--jobs-file", tmp_path / "jobs",
                                folder / "graph"], stderr=subprocess.DEVNULL,
                               env={**os.environ, **k2, "PYTHONPATH": str(ROOT / "pytools")})

    def offspring(pids):
        """Processes that descend from these."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may end meanwhile
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(") ")[2].split()[1])
        below = {pid for pid, parent in parents.items() if parent in pids}
        return below | offspring(below) if below else below

    started = set()
    while len(started) < 4 and process.poll() is None:  # k2's Python, two workers, and the sleep
        started = offspring({process.pid})
        time.sleep(0.2)
    process.terminate()
    assert process.wait(timeout=60) == 130
    until = time.time() + 20
    while time.time() < until and any(Path(f"/proc/{pid}").exists() for pid in started):
        time.sleep(0.2)
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def test_cuts_lie_in_the_surest_silence():
    scores = np.random.default_rng(5).normal(size=(1000, 6)).astype(np.float32)
    scores[:, 4] -= 6
    for begin, end, sure in ((180, 195, 9), (230, 250, 12), (430, 460, 12), (640, 642, 30)):  # the last is a blip
        scores[begin:end, 4] += sure
    cuts = first_rows(scores, np.array([4]), 300, 17)
    assert 230 < cuts[1] < 250 and 430 < cuts[2] < 460


def test_the_best_combinations_of_lists():
    def entry(cost, words):
        ids = np.array(words, np.int32)
        return Entry(cost, Hypothesis(ids, ids * 0, ids * 0 + 1, np.ones(len(ids), np.float32)))

    lists = [[entry(1.0, [1]), entry(2.5, [1, 2]), entry(9.0, [])], [],
             [entry(0.5, [2, 3]), entry(1.0, [3]), entry(4.0, [2])]]
    found = joined_lists(lists, [0, 70, 90], 5)
    cheapest = {}
    for one in lists[0]:
        for other in lists[2]:
            words = (*one.hyp.words.tolist(), *other.hyp.words.tolist())
            cheapest[words] = min(cheapest.get(words, np.inf), one.cost + other.cost)
    expected = sorted((cost, words) for words, cost in cheapest.items())[:5]
    assert [(e.cost, tuple(e.hyp.words.tolist())) for e in found] == expected  # (1, 2, 3) once, of the two ways to it
    assert found[0].hyp.start.tolist() == [0, 90, 90]


@pytest.fixture(scope="module")
def conversation(tmp_path_factory):
    """A graph, and an archive of a long utterance (thirty turns with silence between) and a short one; their words."""
    folder = tmp_path_factory.mktemp("long")
    graph = loop_graph(num_words=40, num_phones=12, seed=3, silence_first=True)
    (folder / "graph").mkdir()
    save_graph(folder / "graph" / "graph.npz", graph)
    silence = silence_pdfs(graph)
    assert len(silence) == 3 and set(graph.phones[graph.unit_phone[np.isin(graph.unit_pdf, silence)]]) == {"SIL"}
    rng, parts, words = np.random.default_rng(6), [], []
    for _ in range(30):
        path = random_path(graph, int(rng.integers(2, 8)), rng)
        pause = rng.normal(size=(30, graph.num_pdfs)).astype(np.float32)
        pause[:, silence] += 12
        parts += [scores_of(graph, path, rng, strength=12.0), pause]
        words.append(graph.words[path_words(graph, path)].tolist())
    write(folder / "long", {"call": np.concatenate(parts), "short": parts[0]})
    return folder, graph, {"call": sum(words, []), "short": words[0]}


def test_a_long_utterance_in_pieces_has_the_words_and_times_of_the_whole(conversation, k2, tmp_path):
    folder, graph, words = conversation
    common = ["--acoustic-scale", 1, "--n-best", 3, folder / "graph", f"ark:{folder}/long.ark"]
    runs = {"whole": ("--piece-seconds", 0), "pieces": ("--piece-seconds", 6), "default": ()}
    for name, arguments in runs.items():
        done = run_k2(k2, *arguments, *common, tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert decode("--piece-seconds", 6, *common, tmp_path / "kaldi") == 0
    reports = {name: json.loads((tmp_path / name / "decode.json").read_text()) for name in [*runs, "kaldi"]}
    assert reports["whole"]["num_pieces"] == reports["default"]["num_pieces"] == 2
    pieces = reports["pieces"]["num_pieces"]
    assert pieces == reports["kaldi"]["num_pieces"] > reports["whole"]["audio_seconds"] / 6
    assert "long ones in pieces" not in done.stderr
    for name in reports:
        assert read_hyp(tmp_path / name) == words and reports[name]["num_utts"] == 2
    ctm = {name: [line.split() for line in (tmp_path / name / "hyp.ctm").read_text().splitlines()] for name in reports}
    for name in ("pieces", "kaldi"):
        assert [line[:5] for line in ctm[name]] == [line[:5] for line in ctm["whole"]]
    assert np.allclose([float(line[5]) for line in ctm["pieces"]], [float(line[5]) for line in ctm["whole"]], atol=0.02)
    lists = {name: read_n_best(tmp_path / name)["call"] for name in reports}
    assert [w for _, w in lists["pieces"]] == [w for _, w in lists["kaldi"]]
    assert lists["whole"][0][1] == tuple(words["call"])
    # at a cut silence is left and entered once more, and a sentence ends: 0.6 + 0.5 + 0.7 + 1.0 of the graph's costs
    assert 0 < lists["pieces"][0][0] - lists["whole"][0][0] < 2.8 * (pieces - 2)


def test_sweeps_rescoring_and_processes_with_pieces(conversation, tmp_path):
    folder, graph, words = conversation
    (tmp_path / "text").write_text("".join(f"{utt} {' '.join(said)}\n" for utt, said in words.items()))
    scores = [folder / "graph", f"ark:{folder}/long.ark"]
    assert decode("--piece-seconds", 6, "--sweep", tmp_path / "text", "--sweep-scales", "0.9,1", "--sweep-penalties", 0,
                  *scores, tmp_path / "sweep") == 0
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["best"]["errors"] == 0
    old = tmp_path / "all.arpa"
    write_arpa(old, estimate(list(words.values()), 2, graph.words[1:].tolist()))
    for name, arguments in (("one", ()), ("two", ("--nj", 2))):
        assert decode("--piece-seconds", 6, "--acoustic-scale", 1, "--old-lm", old, "--lm-scale", 2,
                      *arguments, *scores, tmp_path / name) == 0
    assert read_hyp(tmp_path / "one") == words
    for name in ("hyp.txt", "hyp.ctm"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
    assert decode("--piece-seconds", 6, "--acoustic-scale", 1, "--lattices", "--beam", 6,
                  *scores, tmp_path / "lattices") == 0
    assert json.loads((tmp_path / "lattices" / "decode.json").read_text())["num_pieces"] == 2  # lattices are whole


def test_a_piece_without_a_path_is_named_and_the_others_stay(tmp_path, capsys):
    graph = loop_graph(num_words=10, num_phones=12, seed=2, lengths=(5, 5))
    (tmp_path / "graph").mkdir()
    save_graph(tmp_path / "graph" / "graph.npz", graph)
    rng = np.random.default_rng(0)
    path = random_path(graph, 1, rng)
    head = scores_of(graph, path, rng, strength=9.0)
    pause = rng.normal(size=(4, graph.num_pdfs)).astype(np.float32)
    pause[:, silence_pdfs(graph)] += 15
    assert len(head) <= 17  # so that at most four rows come after the cut, where no word fits
    write(tmp_path / "s", {"u": np.concatenate([head, pause])})
    assert decode("--piece-seconds", 0.03 * (len(head) + 2), "--acoustic-scale", 1, tmp_path / "graph",
                  f"ark:{tmp_path}/s.ark", tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "decode.json").read_text())
    assert report["no_path_in_a_piece_utts"] == ["u"] and report["no_path"] == 0 and report["num_pieces"] == 2
    assert read_hyp(tmp_path / "out")["u"] == graph.words[path_words(graph, path)].tolist()
    told = capsys.readouterr().err
    assert "1 of 1 utterances have no words in a piece (no path survived the search there): u" in told


# ---------------------------------------------------------------------------------------------------------- bad input

def refused(capsys, *arguments):
    """What ``essence decode`` says when it refuses; one line."""
    assert decode(*arguments) == 1
    message = capsys.readouterr().err.strip()
    assert "\n" not in message and message.startswith("essence decode: ")
    return message


def test_a_graph_of_another_tree(corpus, tmp_path, capsys):
    write(tmp_path / "s", {"odd-one": np.zeros((5, corpus.graph.num_pdfs + 3), np.float32)})
    message = refused(capsys, corpus.folder / "graph", f"ark:{tmp_path}/s.ark", tmp_path / "out")
    assert "odd-one" in message and f"{corpus.graph.num_pdfs + 3} columns" in message
    assert f"{corpus.graph.num_pdfs} pdfs" in message and "graph.npz" in message
    assert not (tmp_path / "out" / "hyp.txt").exists()


def test_a_tree_that_differs_in_the_sidecar_alone(corpus, tmp_path, capsys):
    write(tmp_path / "s", corpus.scores)
    write_sidecar(tmp_path / "s.json", {"num_pdfs": corpus.graph.num_pdfs, "tree_hash": "beef", "frame_shift_ms": 30})
    message = refused(capsys, corpus.folder / "graph", f"ark:{tmp_path}/s.ark", tmp_path / "out")
    assert "tree_hash" in message and "beef" in message and "f00d" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_numbers(corpus, tmp_path, capsys, value):
    bad = corpus.scores["utt03"].copy()
    bad[7, 2] = value
    write(tmp_path / "s", {"utt02": corpus.scores["utt02"], "utt03": bad})
    message = refused(capsys, corpus.folder / "graph", f"ark:{tmp_path}/s.ark", tmp_path / "out")
    assert "utt03" in message and "row 7, column 2" in message and str(value) in message


def test_probability_zero_is_allowed_but_not_everywhere(corpus, tmp_path, capsys):
    zeros = corpus.scores["utt03"].copy()
    zeros[:, ::7] = -np.inf
    write(tmp_path / "s", {"utt03": zeros})
    assert decode(corpus.folder / "graph", f"ark:{tmp_path}/s.ark", tmp_path / "out") == 0
    capsys.readouterr()
    zeros[4] = -np.inf
    write(tmp_path / "s", {"utt03": zeros})
    message = refused(capsys, corpus.folder / "graph", f"ark:{tmp_path}/s.ark", tmp_path / "out2")
    assert "utt03" in message and "row 4" in message


def test_no_surviving_path_is_an_empty_hypothesis(tmp_path, capsys, k2):
    graph = loop_graph(num_words=10, num_phones=12, seed=2, lengths=(3, 3))
    (tmp_path / "graph").mkdir()
    save_graph(tmp_path / "graph" / "graph.npz", graph)
    rng = np.random.default_rng(0)
    good = scores_of(graph, random_path(graph, 2, rng), rng)
    write(tmp_path / "s", {"short": good[:2], "good": good})  # no word fits into two frames
    assert decode(tmp_path / "graph", f"ark:{tmp_path}/s.ark", tmp_path / "kaldi") == 0
    assert "1 of 2 utterances have an empty hypothesis (no path survived the search): short" in capsys.readouterr().err
    done = run_k2(k2, tmp_path / "graph", f"ark:{tmp_path}/s.ark", tmp_path / "k2")
    assert "1 of 2 utterances have an empty hypothesis (no path survived the search): short" in done.stderr
    for decoder in ("kaldi", "k2"):
        assert (tmp_path / decoder / "hyp.txt").read_text().startswith("short\ngood w")
        report = json.loads((tmp_path / decoder / "decode.json").read_text())
        assert report["no_path"] == 1 and report["no_path_utts"] == ["short"] and report["num_utts"] == 2


def test_a_narrow_beam_is_widened_once(corpus, tmp_path):
    """A search so narrow that it loses every path is tried again wider, and that is counted."""
    options = DecodeOptions(acoustic_scale=1.0, beam=0.4, max_active=2, min_active=0, retry_factor=200.0)
    open_decoder("kaldi", corpus.folder / "graph", options).decode([Job(f"scp:{corpus.folder}/scores.scp", tmp_path)])
    report = json.loads((tmp_path / "decode.json").read_text())
    assert report["retried"] > 0 and report["no_path"] == 0


def test_words_missing_from_words_txt(corpus, tmp_path, capsys):
    graph = load_graph(corpus.folder / "graph" / "graph.npz")
    graph.words = graph.words[:-5]
    save_graph(tmp_path / "graph.npz", graph)
    message = refused(capsys, tmp_path, f"scp:{corpus.folder}/scores.scp", tmp_path / "out")
    assert "its olabel goes from 0 to 60, where there are 56" in message


@pytest.mark.parametrize("change, words", [
    (["--beam", "0"], "--beam is 0.0"),
    (["--max-active", "10", "--min-active", "20"], "--min-active is 20"),
    (["--active-rows", "-1"], "--active-rows is -1"),
    (["--nj", "0"], "--nj is 0"),
    (["--sweep-scales", "0.1,zero"], "--sweep-scales is '0.1,zero'"),
    (["--pooled", "x.json"], "--pooled belongs to --sweep"),
    (["--sweep-only"], "--sweep-only belongs to --sweep"),
    (["--old-lm", "x.arpa"], "--old-lm and --new-lm belong together"),
    (["--new-lm", "x.arpa"], "--old-lm and --new-lm belong together"),
    (["--lm-scale", "0.8"], "or --old-lm and --lm-scale"),
    (["--lm-scale", "0", "--old-lm", "x.arpa"], "--lm-scale is 0.0"),
    (["--batch-rows", "-1"], "--batch-rows is -1"),
    (["--piece-seconds", "-1"], "--piece-seconds is -1"),
    (["--acoustic-scale", "0"], "--acoustic-scale is 0.0"),
    (["--acoustic-scale", "inf"], "--acoustic-scale is inf"),
    (["--word-insertion-penalty", "nan"], "--word-insertion-penalty is nan"),
    (["--sweep-scales", "0.1,nan"], "at least one number each"),
    (["--data", "/nowhere/data"], "/nowhere/data: no such data directory"),
    (["--sweep", "/nowhere/text"], "/nowhere/text"),
    (["--scale-from", "/nowhere/sweep.json"], "/nowhere/sweep.json: there is no such sweep"),
    (["--config", "/nowhere/c.yaml"], "/nowhere/c.yaml"),
])
def test_options_that_cannot_be(corpus, tmp_path, capsys, change, words):
    assert words in refused(capsys, *change, corpus.folder / "graph", f"scp:{corpus.folder}/scores.scp", tmp_path / "o")


def test_files_that_are_not_there_or_broken(corpus, tmp_path, capsys):
    scores = f"scp:{corpus.folder}/scores.scp"
    assert "make-graph" in refused(capsys, tmp_path, scores, tmp_path / "o")
    whole = (corpus.folder / "graph" / "graph.npz").read_bytes()
    (tmp_path / "graph.npz").write_bytes(whole[:len(whole) // 2])
    message = refused(capsys, tmp_path, scores, tmp_path / "o")
    assert "graph.npz: " in message and "make-graph" in message and "no such graph" not in message
    assert "none.ark" in refused(capsys, corpus.folder / "graph", f"ark:{tmp_path}/none.ark", tmp_path / "o")
    (tmp_path / "void.ark").write_bytes(b"")
    assert "no utterances" in refused(capsys, corpus.folder / "graph", f"ark:{tmp_path}/void.ark", tmp_path / "o")
    cut = (corpus.folder / "scores.ark").read_bytes()[:-100]
    (tmp_path / "cut.ark").write_bytes(cut)
    assert "utt39" in refused(capsys, corpus.folder / "graph", f"ark:{tmp_path}/cut.ark", tmp_path / "o")
    (tmp_path / "text").write_text("utt00 w1\n")
    message = refused(capsys, "--sweep", tmp_path / "text", corpus.folder / "graph", scores, tmp_path / "o")
    assert "utt01" in message and "reference" in message


@pytest.mark.parametrize("line, words", [
    ("ark:x.ark", "line 1 has 1 fields"), ("'ark:x.ark out", "No closing quotation"), ("", "no jobs"),
    ("ark:x out\nark:y out", "same directory"),
])
def test_jobs_files_that_cannot_be(corpus, tmp_path, capsys, line, words):
    (tmp_path / "jobs").write_text(line + "\n")
    assert words in refused(capsys, "--jobs-file", tmp_path / "jobs", corpus.folder / "graph")


def test_k2_that_is_missing_or_broken(corpus, tmp_path):
    """Asked for by name it is an error with the fix; with auto, kaldi-decoder decodes with a notice."""
    dangling = tmp_path / "python"
    dangling.symlink_to(tmp_path / "gone")
    bare = [corpus.folder / "graph", f"ark:{corpus.folder}/odd.ark"]
    without = run_k2({"ESSENCE_K2_PYTHON": str(dangling)}, *bare, tmp_path / "a")
    assert without.returncode == 1 and "cannot be started" in without.stderr and "--decoder kaldi" in without.stderr
    plain = tmp_path / "venv" / ".venv-k2"  # an environment in which nothing is installed
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(plain)], check=True)
    broken = {"WORK_DIR": str(plain.parent), "ESSENCE_K2_PYTHON": ""}
    without = run_k2(broken, *bare, tmp_path / "a")
    assert without.returncode == 1 and "has no usable k2" in without.stderr and "local/setup_env.sh" in without.stderr
    named = run_k2({"ESSENCE_K2_PYTHON": str(plain / "bin" / "python")}, *bare, tmp_path / "a")  # as path.sh does
    assert named.returncode == 1 and f"rm -r {plain}; local/setup_env.sh" in named.stderr
    assert not (tmp_path / "a").exists()
    fallen_back = run_k2(broken, "--decoder", "auto", *bare, tmp_path / "b")
    assert fallen_back.returncode == 0 and "kaldi-decoder decodes instead" in fallen_back.stderr
    assert json.loads((tmp_path / "b" / "decode.json").read_text())["decoder"] == "kaldi"


def test_batches_keep_to_their_bounds():
    lengths = [5, 900, 30, 31, 29, 100, 1, 2000, 450]
    batches = cut_batches(lengths, width=10, max_rows=1000)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 1000
    assert batches[0] == [7]
    assert all(len(batch) == 1 for batch in cut_batches([100, 100], width=1 << 20, max_rows=1000))


def test_sweeps_are_pooled(tmp_path, capsys):
    def sweep(name, errors):
        points = [{"acoustic_scale": s, "word_insertion_penalty": p, "errors": n, "wer": n / 2}
                  for (s, p), n in errors.items()]
        path = tmp_path / name
        path.write_text(json.dumps({"reference_words": 200, "best": points[0], "points": points}))
        return str(path)

    a = sweep("a.json", {(0.2, 0.0): 3, (0.4, 0.0): 5, (0.8, 0.0): 30, (1.6, 0.0): 0})
    b = sweep("b.json", {(0.2, 0.0): 40, (0.4, 0.0): 10, (0.8, 0.0): 9})
    out = tmp_path / "pooled.json"
    assert main(["pool-sweeps", str(out), a, b]) == 0
    table = json.loads(out.read_text())
    best = table["best"]
    assert (best["acoustic_scale"], best["errors"], best["wer"]) == (0.4, 15, 3.75)
    assert not table["scale_at_edge"] and not table["penalty_at_edge"]  # one penalty alone has no edge
    before = out.stat().st_mtime_ns
    assert main(["pool-sweeps", str(out), a, b]) == 0 and out.stat().st_mtime_ns == before
    capsys.readouterr()
    apart = sweep("c.json", {(3.0, 0.0): 1})
    assert main(["pool-sweeps", str(out), a, apart]) == 1 and "no setting in common" in capsys.readouterr().err
    (tmp_path / "half.json").write_text(json.dumps({"best": best}))
    assert main(["pool-sweeps", str(out), a, str(tmp_path / "half.json")]) == 1
    assert "half.json: not a whole sweep.json" in capsys.readouterr().err
    (tmp_path / "d.json").write_text("{}")
    assert main(["pool-sweeps", str(out), a, str(tmp_path / "d.json")]) == 1 and "d.json" in capsys.readouterr().err


@pytest.mark.parametrize("scale, penalty, edges", [(0.4, 0.0, (False, False)), (0.2, 0.0, (True, False)),
                                                   (0.4, 1.0, (False, True)), (0.8, -1.0, (True, True))])
def test_a_best_setting_at_the_edge_of_its_grid(scale, penalty, edges):
    points = itertools.product((0.2, 0.4, 0.8), (-1.0, 0.0, 1.0))
    table = sweep_table({point: 5 - (point == (scale, penalty)) for point in points}, 100)
    assert table["best"]["errors"] == 4 and (table["scale_at_edge"], table["penalty_at_edge"]) == edges
