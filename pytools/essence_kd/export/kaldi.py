"""What formats for Kaldi's programs share: final.mdl, the graph directory, configuration files, the check of scores."""
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Dict, List, Optional, Tuple

import numpy as np

from essence_kd.am.cmn import OnlineMean, cmn_of_model, without_mean
from essence_kd.corpus.features import FeatureOptions, dct_matrix
from essence_kd.decode.options import DecodeOptions
from essence_kd.export.format import ExportSettings, Format, Source
from essence_kd.export.kaldi_graph import kaldi_graph
from essence_kd.hmm.fst import write_fst
from essence_kd.hmm.graph import Graph
from essence_kd.hmm.kaldi_objects import ObjectWriter, expect
from essence_kd.hmm.lang import POSITIONS
from essence_kd.hmm.transition_model import read_model_file, write_transition_model
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import write_text

MIN_ACTIVE = 200  # Kaldi's default, which is more careful than ours
_GLOBAL_FRAMES = 10_000.0  # that the statistics of the global mean stand for


class KaldiFormat(Format):
    """A network of Kaldi's nnet3 with its transition model and HCLG.fst."""

    architectures = ("tdnn", "tdnn_f", "cnn_tdnn")
    needs_graph = True
    features: ClassVar[str]  # fbank, or mfcc: as many cepstra as mel bins, which the network turns into log-mels

    def __init__(self, source: Source, settings: ExportSettings) -> None:
        super().__init__(source, settings)
        self._reader: Optional[Tuple[Any, np.ndarray]] = None

    def check(self) -> None:
        """UserError for what a network of Kaldi's cannot be."""
        from essence_kd.export.nnet3_model import nnet3_network

        source = self.source
        self.model_cmn: Any = cmn_of_model(source.about, source.model_dir)
        if isinstance(self.model_cmn, OnlineMean) and self.model_cmn.look_ahead:
            raise UserError(f"{source.model_dir / 'model.yaml'}: the running mean looks {self.model_cmn.look_ahead} "
                            "frames ahead, which Kaldi's does not: train with data.cmn_look_ahead=0")
        dim = source.model.feat_dim
        self.feature_map = dct_matrix(dim, dim) if self.features == "mfcc" else None
        self.network = nnet3_network(source.model, source.about["arch"], self.feature_map)
        self.trained_edges = source.model.edge_rows
        # Kaldi sees the first and the last frame beyond the edges, as far as the network looks
        left, right = self.network.context()
        self.edge_rows = -(-left // source.factor), -(-right // source.factor)
        source.model.edge_rows = self.edge_rows

    def write_model(self, path: Path) -> None:
        """final.mdl; its transition model is that of ``self.transitions``."""
        out = ObjectWriter()
        write_transition_model(out, self.transitions)
        self.network.write(out)
        left, right = self.network.context()
        priors = np.exp(self.settings.prior_scale * self.source.log_priors.astype(np.float64))
        out.token("<LeftContext>").integer(left).token("<RightContext>").integer(right)
        out.token("<Priors>").vector(priors)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(out.data())

    def write_graph(self, folder: Path) -> None:
        """HCLG.fst, words.txt, phones.txt and phones/ of a graph directory; sets ``self.transitions``."""
        graph: Graph = self.source.graph
        where = self.source.graph_dir / "graph.npz"
        hclg, self.transitions = kaldi_graph(graph, where, self.settings.word_insertion_penalty)
        if self.transitions.num_pdfs != self.source.model.num_pdfs:
            raise UserError(f"{where}: its phones have {self.transitions.num_pdfs} pdfs, the model "
                            f"{self.source.model.num_pdfs}")
        (folder / "phones").mkdir(parents=True)
        write_fst(folder / "HCLG.fst", hclg)
        for name, symbols in (("words.txt", graph.words), ("phones.txt", graph.phones)):
            write_text(folder / name, "".join(f"{symbol} {i}\n" for i, symbol in enumerate(symbols) if symbol))
        kinds = {number: name for name, number in POSITIONS.items()}
        phones = sorted(set(graph.unit_phone[1:].tolist()))
        for name, of in (("int", str), ("txt", lambda phone: graph.phones[phone])):
            write_text(folder / "phones" / f"word_boundary.{name}",
                       "".join(f"{of(phone)} {kinds[int(graph.phone_kind[phone])]}\n" for phone in phones))
        write_text(folder / "phones" / "silence.csl", ":".join(map(str, self.silence_phones())) + "\n")
        write_text(folder / "num_pdfs", f"{self.transitions.num_pdfs}\n")

    def silence_phones(self) -> List[int]:
        """phone-ids of what lies between words."""
        graph = self.source.graph
        return [phone for phone in sorted(set(graph.unit_phone[1:].tolist())) if graph.phone_kind[phone] == 0]

    def write_features(self, path: Path, front_end: FeatureOptions) -> None:
        """fbank.conf or mfcc.conf."""
        o, bins = front_end, self.source.model.feat_dim
        lines = {"sample-frequency": o.sample_frequency, "frame-length": o.frame_length_ms,
                 "frame-shift": o.frame_shift_ms, "low-freq": o.low_freq, "high-freq": o.high_freq,
                 "num-mel-bins": bins, "preemphasis-coefficient": o.preemphasis, "window-type": "povey",
                 "dither": 0.0, "snip-edges": True, "use-energy": False}
        if self.features == "mfcc":
            lines.update({"num-ceps": bins, "cepstral-lifter": 0.0})
        write_options(path, lines)

    def write_global_mean(self, path: Path) -> None:
        """Statistics of the mean that a running mean begins with, a matrix of Kaldi's (2, dim + 1)."""
        mean = np.array(self.model_cmn.mean)
        var = 1 / np.square(self.source.model.feat_inv_std.numpy().astype(np.float64))
        if self.feature_map is not None:
            mean, var = mean @ self.feature_map, var @ np.square(self.feature_map)
        stats = np.stack([np.append(mean, 1), np.append(var + mean * mean, 0)])
        out = ObjectWriter()
        path.write_bytes(out.matrix(_GLOBAL_FRAMES * stats).data())

    def search_options(self) -> Dict[str, Any]:
        """Options of Kaldi's decoders and endpoint detection."""
        s = self.settings
        return {"beam": s.beam, "lattice-beam": DecodeOptions.output_beam, "max-active": s.max_active,
                "min-active": min(MIN_ACTIVE, s.max_active), "acoustic-scale": s.acoustic_scale,
                "frame-subsampling-factor": self.source.factor,
                "endpoint.silence-phones": ":".join(map(str, self.silence_phones()))}

    def edges_text(self) -> str:
        """What README.md says of the edges of utterances."""
        if all(have >= want for have, want in zip(self.trained_edges, self.edge_rows)):
            return "Beyond an utterance's edges Kaldi sees its first and last frame, and so did training."
        left, right = (rows * self.source.row_ms for rows in self.edge_rows)
        return (f"Beyond an utterance's edges Kaldi sees its first and last frame, where training saw something else: "
                f"scores of its first {left:g} and last {right:g} ms are not those of `essence forward`. A model that "
                "was trained with `data.edges: repeat` has no such difference.")

    def verify_model(self, path: Path, feats: np.ndarray) -> np.ndarray:
        """Scores by what a final.mdl says, computed with NumPy as Kaldi computes it."""
        if self._reader is None:
            from essence_kd.export.nnet3_network import Network

            _, reader = read_model_file(path)
            network = Network.read(reader)
            for name in ("<LeftContext>", "<RightContext>"):
                expect(reader, name)
                reader.integer()
            expect(reader, "<Priors>")
            self._reader = network, np.log(reader.vector())
        network, log_priors = self._reader
        if self.feature_map is not None:
            feats = (feats @ self.feature_map).astype(np.float32)
        cmn = self.model_cmn
        if isinstance(cmn, OnlineMean) and self.feature_map is not None:
            cmn = OnlineMean(cmn.prior, cmn.window, 0, tuple((np.array(cmn.mean) @ self.feature_map).tolist()))
        scores = network.compute(without_mean(feats, cmn), self.source.factor)
        return np.float32(self.settings.acoustic_scale) * (scores - log_priors)


def write_options(path: Path, options: Dict[str, Any]) -> None:
    """A configuration file of Kaldi's programs, a line per option."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"--{name}={_text(value)}\n" for name, value in options.items()))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
