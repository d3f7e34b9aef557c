"""A model folder of Vosk's, which recognises while speech goes on."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from essence_kd.am.cmn import OnlineMean
from essence_kd.am.settings import DataSettings
from essence_kd.export.format import Written, register_format
from essence_kd.export.kaldi import KaldiFormat, write_options
from essence_kd.io.errors import UserError

ENDPOINTS = {"endpoint.rule2.min-trailing-silence": 0.5, "endpoint.rule3.min-trailing-silence": 0.75,
             "endpoint.rule4.min-trailing-silence": 1.0}
GRAPH_SCALE = 0.9  # that Vosk multiplies the graph's costs with in a lattice, before it chooses words
README = """# {arch}, {num_pdfs} pdfs, for Vosk

    import json, wave, vosk
    model = vosk.Model("FOLDER")
    recogniser = vosk.KaldiRecognizer(model, {rate})
    recogniser.SetWords(True)
    with wave.open("a.wav") as audio:  # 16 bits, one channel
        while True:
            data = audio.readframes(4000)
            if not data:
                break
            if recogniser.AcceptWaveform(data):  # the end of an utterance
                print(json.loads(recogniser.Result())["text"])
            else:
                print(json.loads(recogniser.PartialResult())["partial"])
    print(json.loads(recogniser.FinalResult())["text"])

Vosk's applications and its server (`vosk-server`) take the folder as it is. Audio of a higher rate than {rate} Hz is
brought down to it.

`am/final.mdl` is a network of Kaldi's nnet3; it takes MFCC, as many as there were mel bins, and turns them into
log-mels, because Vosk's running mean counts only frames whose first coefficient is above 50: with log-mels, none.
Vosk multiplies the costs of the graph by 0.9 after its search. The acoustic scale in `conf/model.conf` is therefore 0.9
times the one that was asked for, {acoustic_scale:g}.
{edges}
"""


@register_format
class Vosk(KaldiFormat):
    """am/, conf/ and graph/ as Vosk 0.3.45 looks for them."""

    name = "vosk"
    cmn = ("none", "online")
    features = "mfcc"

    def check(self) -> None:
        """Also that the running mean is the one that Vosk has."""
        super().check()
        if isinstance(self.model_cmn, OnlineMean) and \
                (self.model_cmn.prior, self.model_cmn.window) != (DataSettings.cmn_prior, DataSettings.cmn_window):
            raise UserError(
                f"{self.source.model_dir / 'model.yaml'}: the running mean is of {self.model_cmn.window} frames and a "
                f"prior of {self.model_cmn.prior}, and Vosk's, which cannot be set, of {DataSettings.cmn_window} and "
                f"{DataSettings.cmn_prior}: train with these, as conf/models/student_tdnn_online.yaml does")

    def write(self, folder: Path) -> Written:
        """All files."""
        from essence_kd.export.exporter import front_end

        ends = front_end(self.settings)
        self.write_graph(folder / "graph")
        self.write_model(folder / "am" / "final.mdl")
        self.write_features(folder / "conf" / "mfcc.conf", ends)
        options = self.search_options()
        options["acoustic-scale"] *= GRAPH_SCALE  # words are chosen at the scale that was asked for
        write_options(folder / "conf" / "model.conf", {**options, **ENDPOINTS})
        if isinstance(self.model_cmn, OnlineMean):
            self.write_global_mean(folder / "am" / "global_cmvn.stats")
        readme = README.format(arch=self.source.about["arch"], num_pdfs=self.source.model.num_pdfs,
                               rate=ends.sample_frequency, acoustic_scale=self.settings.acoustic_scale,
                               edges=self.edges_text())
        return Written(readme, {"model": "am/final.mdl"})

    def verify(self, folder: Path, feats: np.ndarray) -> np.ndarray:
        """By NumPy, of final.mdl as it lies there, from cepstra."""
        return self.verify_model(folder / "am" / "final.mdl", feats)
