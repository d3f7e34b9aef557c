"""A language, its graph at 30 ms, an untrained model for it, and audio: what exports to Kaldi's programs need."""
import numpy as np
from builders.corpora import RATE, speechlike
from builders.exports import make_model as make_network
from builders.graphs import make_lang, make_model, random_model, triphone_tree

from essence_kd.am.forward import scores
from essence_kd.am.stream import StreamingModel
from essence_kd.corpus.features import FeatureExtractor, FeatureOptions
from essence_kd.decode.decoder import DECODERS
from essence_kd.decode.lattice import path_words
from essence_kd.decode.options import DecodeOptions
from essence_kd.export.format import ExportSettings
from essence_kd.hmm import graph as R
from essence_kd.hmm.alignment_dir import read_log_priors
from essence_kd.hmm.gmm import save_gmm
from essence_kd.io.settings import dump_settings, read_yaml
from essence_kd.io.wave import write_wav

# nothing is pruned; a reward for words, since an untrained model would rather be silent
WIDE = ExportSettings(acoustic_scale=0.5, beam=200.0, max_active=100000,
                      word_insertion_penalty=-25.0)
KALDIS = {"prior": 200, "window": 600, "look_ahead": 0}  # running mean


def make_language(root, triphones=False, **options):
    """root/lang, root/gmm and root/graph (a row every 30 ms); the graph."""
    lang = make_lang(root)
    model = random_model(lang, triphone_tree(lang), 1) if triphones else make_model(lang)
    save_gmm(root / "gmm", model)
    graph = R.make_graph(root / "lang", root / "gmm", factor=3, **options)
    R.write_graph_dir(root / "graph", graph)
    return graph


def make_speaker(folder, graph, arch="tdnn", cmn="online", edge_rows=(12, 12), online=KALDIS, **options):
    """A model directory with random parameters for the pdfs of a graph; the folder."""
    make_network(folder, arch, num_pdfs=graph.num_pdfs, cmn=cmn, tree_hash=graph.meta["tree_hash"], **options)
    about = read_yaml(folder / "model.yaml")
    if cmn == "online":
        level = np.random.default_rng(3).uniform(6, 12, 40)
        about["online_cmn"] = {**online, "mean": [float(f"{x:.5g}") for x in level]}
    if edge_rows:
        about["edge_rows"] = list(edge_rows)
    dump_settings(about, folder / "model.yaml")
    return folder


def make_audio(folder, seconds=(1.3, 0.4, 3.1)):
    """Wave files u0.wav, u1.wav, ... that sound like speech; their log-mels by name."""
    folder.mkdir(parents=True, exist_ok=True)
    extractor, feats = FeatureExtractor(FeatureOptions(), ("fbank",)), {}
    for n, length in enumerate(seconds):
        samples = speechlike(length, n)
        write_wav(folder / f"u{n}.wav", samples, RATE)
        feats[f"u{n}"] = extractor(samples)["fbank"]
    return feats


def best_words(graph, model_dir, feats):
    """The words of the best path, nothing pruned, of what a model answers while an utterance is spoken."""
    stream = StreamingModel(model_dir).start()
    logits = np.concatenate([stream.part(feats[t:t + 30]) for t in range(0, len(feats), 30)]
                            + [stream.part(feats[:0], last=True)])
    log_priors = read_log_priors(model_dir / "priors.txt", graph.num_pdfs).astype(np.float32)
    options = DecodeOptions(acoustic_scale=WIDE.acoustic_scale, beam=WIDE.beam, max_active=WIDE.max_active,
                            word_insertion_penalty=WIDE.word_insertion_penalty)
    decoded, = DECODERS.get("kaldi")(graph, options).decode([scores(logits, "loglike", log_priors)])
    return graph.words[path_words(graph, decoded.path)].tolist()
