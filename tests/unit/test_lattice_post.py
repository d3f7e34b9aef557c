"""Posteriors mixed with those of their lattices: against all paths of the graph, by both decoders; what is refused."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from builders import ROOT, refused, table
from builders.graphs import loop_graph, random_path, scores_of

from essence_kd.cli.main import main
from essence_kd.decode.decoders.kaldi import KaldiDecoder
from essence_kd.decode.options import DecodeOptions
from essence_kd.decode.posteriors import LatticeSettings, lattice_posterior, mix_with_lattices
from essence_kd.hmm.graph import save_graph
from essence_kd.io.posterior import PosteriorWriter, read_posteriors
from essence_kd.io.tables import MatrixWriter, read_matrices

SCALE, WIDE = 0.3, {"beam": 100.0, "output_beam": 100.0}
EVERYTHING = LatticeSettings(acoustic_scale=SCALE, temperature=1.0, **WIDE)


def all_paths(graph, scores, scale):
    """float64 (T, C): probability of each pdf in each row, among all paths of the graph; nothing is pruned."""
    size = graph.num_states
    weight = np.exp(-graph.weight.astype(np.float64))
    free = np.zeros((size, size))
    np.add.at(free, (graph.src[graph.ilabel == 0], graph.dst[graph.ilabel == 0]), weight[graph.ilabel == 0])
    close = np.linalg.inv(np.eye(size) - free)  # epsilons, any number of them
    taking = np.flatnonzero(graph.ilabel > 0)
    src, dst, pdf = graph.src[taking], graph.dst[taking], graph.ilabel[taking] - 1
    arcs = [weight[taking] * np.exp(scale * row[pdf]) for row in scores.astype(np.float64)]
    forward = [close[0]]
    for arc in arcs:
        reached = np.zeros(size)
        np.add.at(reached, dst, forward[-1][src] * arc)
        forward.append(reached @ close)
    backward = [np.exp(-graph.final.astype(np.float64))]
    for arc in arcs[::-1]:
        left = np.zeros(size)
        np.add.at(left, src, arc * (close @ backward[0])[dst])
        backward.insert(0, left)
    found = np.zeros((len(scores), graph.num_pdfs))
    for row, arc in enumerate(arcs):
        np.add.at(found[row], pdf, forward[row][src] * arc * (close @ backward[row + 1])[dst])
    return found / (forward[-1] @ backward[-1])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, graph, utterance -> posteriors): folder has graph/, priors, and archives full and wide of these."""
    folder, rng = tmp_path_factory.mktemp("lattices"), np.random.default_rng(3)
    graph = loop_graph(num_words=6, num_phones=5, seed=2, lengths=(1, 3), moved=True)
    (folder / "graph").mkdir()
    save_graph(folder / "graph" / "graph.npz", graph)
    priors = rng.dirichlet(np.full(graph.num_pdfs, 4.0))
    (folder / "priors").write_text("".join(f"{p:.9g}\n" for p in priors))
    posts = {}
    for number in range(4):
        scores = scores_of(graph, random_path(graph, 2, rng), rng, strength=2.0) + np.log(priors)
        posts[f"u{number}"] = (np.exp(scores) / np.exp(scores).sum(1, keepdims=True)).astype(np.float32)
    posts["none"] = np.zeros((0, graph.num_pdfs), np.float32)
    table(MatrixWriter, folder / "full", posts)
    with PosteriorWriter(f"ark,scp:{folder}/wide.ark,{folder}/wide.scp") as writer:
        for utt, probs in posts.items():
            ids = np.argsort(-probs, axis=1)[:, :4].astype(np.int32)
            writer.write(utt, ids, np.take_along_axis(probs, ids, 1))
    return folder, graph, posts


def wanted(made, utt, probs, weight):
    folder, graph, _ = made
    priors = np.loadtxt(folder / "priors")
    lattice = all_paths(graph, np.log(probs) - np.log(priors / priors.sum()), SCALE)
    np.testing.assert_allclose(lattice.sum(axis=1), 1, atol=1e-9)
    return weight * lattice + (1 - weight) * probs


def test_a_matrix_becomes_the_mixture_with_the_probabilities_of_all_paths(made, tmp_path):
    folder, graph, posts = made
    for weight in (0.75, 1.0):
        tally = mix_with_lattices(folder / "graph", f"scp:{folder}/full.scp", folder / "priors",
                                  f"ark:{tmp_path}/x.ark", LatticeSettings(weight, SCALE, temperature=1.0, **WIDE),
                                  decoder="kaldi")
        found = dict(read_matrices(f"ark:{tmp_path}/x.ark"))
        assert list(found) == list(posts) and (tally.num_utts, found["none"].size) == (5, 0)
        for utt in list(posts)[:4]:
            np.testing.assert_allclose(found[utt], wanted(made, utt, posts[utt], weight), atol=2e-5)


def test_a_sparse_posterior_keeps_its_number_of_entries_and_its_lacking_classes_share_the_rest(made, tmp_path):
    folder, graph, posts = made
    mix_with_lattices(folder / "graph", f"scp:{folder}/wide.scp", folder / "priors", f"ark:{tmp_path}/x.ark",
                      EVERYTHING, decoder="kaldi")
    given = dict(read_posteriors(f"scp:{folder}/wide.scp"))
    for utt, post in read_posteriors(f"ark:{tmp_path}/x.ark"):
        if utt == "none":
            assert post.num_frames == 0
            continue
        sparse = np.zeros_like(posts[utt])
        np.put_along_axis(sparse, given[utt].fixed_k()[0], given[utt].fixed_k()[1], 1)
        rest = (1 - sparse.sum(1, keepdims=True)) / (graph.num_pdfs - 4)
        dense = np.where(sparse > 0, sparse, rest)
        mixture = wanted(made, utt, dense, 0.75) - 0.25 * np.where(sparse > 0, 0, dense)
        ids, probs = post.fixed_k()
        assert ids.shape == (len(dense), 4)
        np.testing.assert_allclose(probs, -np.sort(-mixture, axis=1)[:, :4], atol=2e-5)
        np.testing.assert_allclose(probs, np.take_along_axis(mixture, ids, 1), atol=2e-5)


@pytest.mark.parametrize("temperature", [0.25, 0.5, 2.0])
def test_a_temperature_makes_the_mixture_surer_or_less_sure(made, tmp_path, temperature):
    folder, _, posts = made
    settings = LatticeSettings(acoustic_scale=SCALE, temperature=temperature, **WIDE)
    mix_with_lattices(folder / "graph", f"scp:{folder}/full.scp", folder / "priors", f"ark:{tmp_path}/x.ark", settings,
                      decoder="kaldi")
    for utt, found in read_matrices(f"ark:{tmp_path}/x.ark"):
        if utt != "none":
            power = wanted(made, utt, posts[utt], 0.75) ** (1 / temperature)
            np.testing.assert_allclose(found, power / power.sum(axis=1, keepdims=True), atol=2e-5)


def test_lattices_know_what_single_frames_do_not(made):
    """Their best classes are more often those of the path that was spoken."""
    _, graph, _ = made
    rng, right = np.random.default_rng(9), np.zeros(2)
    decoder = KaldiDecoder(graph, DecodeOptions(acoustic_scale=1.0, **WIDE))
    for _ in range(20):
        path = random_path(graph, 3, rng)
        scores, spoken = scores_of(graph, path, rng, strength=1.5), graph.ilabel[path][graph.ilabel[path] > 0] - 1
        lattice = lattice_posterior(decoder.decode([scores], lattices=True)[0].lattice, graph, 1.0)
        right += [(scores.argmax(1) == spoken).mean(), (lattice.argmax(1) == spoken).mean()]
    assert right[1] > right[0] + 2


def test_both_decoders_and_several_processes_say_the_same(made, k2, tmp_path):
    folder, _, _ = made

    def run(name, *options):
        command = [sys.executable, "-m", "essence_kd", "lattice-post", "--beam", "100", "--output-beam", "30",
                   "--temperature", "1", *options, folder / "graph", f"scp:{folder}/wide.scp", folder / "priors",
                   f"ark,scp:{tmp_path}/{name}.ark,{tmp_path}/{name}.scp"]
        environment = {**os.environ, **k2, "PYTHONPATH": str(ROOT / "pytools"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "lattice-post: 5 utterances" in done.stderr
        return dict(read_posteriors(f"scp:{tmp_path}/{name}.scp"))

    answers = [run("k2", "--decoder", "k2"), run("two", "--decoder", "k2", "--nj", "2"),
               run("kaldi", "--decoder", "kaldi")]
    for utt, post in answers[0].items():
        np.testing.assert_array_equal(answers[1][utt].probs, post.probs)
        np.testing.assert_allclose(answers[2][utt].probs, post.probs, atol=1e-4)
    sidecar = json.loads((tmp_path / "k2.json").read_text())
    assert sidecar["lattice"] == {"weight": 0.75, "acoustic_scale": 0.25, "temperature": 1.0, "beam": 100.0,
                                  "output_beam": 30.0, "decoder": "k2", "without_path": 0}


def test_utterances_without_a_path_keep_their_posteriors_and_are_named(made, tmp_path, capsys):
    folder, _, posts = made
    few = {utt: posts[utt][:-1] for utt in ("u0", "u1")}
    table(MatrixWriter, tmp_path / "few", few)
    tally = mix_with_lattices(folder / "graph", f"scp:{tmp_path}/few.scp", folder / "priors", f"ark:{tmp_path}/x.ark",
                              LatticeSettings(acoustic_scale=20.0, beam=0.01), decoder="kaldi")
    assert "2 of 2 utterances keep their posteriors, for no path survived the search: u0 u1" in capsys.readouterr().err
    for utt, kept in read_matrices(f"ark:{tmp_path}/x.ark"):
        np.testing.assert_array_equal(kept, few[utt])
    assert tally.num_utts == 2


def test_what_is_refused(made, tmp_path, capsys):
    folder, graph, posts = made
    source, out = f"scp:{folder}/wide.scp", f"ark:{tmp_path}/x.ark"

    def mix(rspecifier=source, priors=folder / "priors", **more):
        return lambda: mix_with_lattices(folder / "graph", rspecifier, priors, out, **{"decoder": "kaldi", **more})

    refused(mix(settings=LatticeSettings(weight=0)), "--weight is 0, but must be above 0 and at most 1")
    refused(mix(settings=LatticeSettings(acoustic_scale=0)), "--acoustic-scale is 0")
    refused(mix(settings=LatticeSettings(temperature=0)), "--temperature is 0, but must be from 0.01 to 100")
    refused(mix(decoder="kaldi-lattice"), "--decoder kaldi-lattice gives no lattices")
    refused(mix(decoder="nothing"), "nothing")
    (tmp_path / "priors").write_text("0.5\n0.5\n")
    refused(mix(priors=tmp_path / "priors"), tmp_path / "priors", "2 priors", f"{graph.num_pdfs} pdfs")
    table(MatrixWriter, tmp_path / "odd", {"u": np.full((3, 2), 0.5, np.float32)})
    refused(mix(f"scp:{tmp_path}/odd.scp"), "odd.scp", "utterance u", "2 columns", f"{graph.num_pdfs} pdfs")
    with PosteriorWriter(f"ark:{tmp_path}/high.ark") as writer:
        writer.write("u", np.full((2, 1), graph.num_pdfs, np.int32), np.ones((2, 1), np.float32))
    refused(mix(f"ark:{tmp_path}/high.ark"), "high.ark", "utterance u", str(graph.num_pdfs))
    (tmp_path / "empty.scp").write_text("")
    refused(mix(f"scp:{tmp_path}/empty.scp"), "empty.scp", "no utterance")
    (folder / "wide.json").write_text(json.dumps({"num_pdfs": graph.num_pdfs + 1}))
    try:
        refused(mix(), "wide.json", "num_pdfs")
    finally:
        (folder / "wide.json").unlink()
    words = ["lattice-post", "--decoder", "kaldi", "--nj", "0", folder / "graph", source, folder / "priors", out]
    assert main(list(map(str, words))) == 1 and "--nj is 0" in capsys.readouterr().err
