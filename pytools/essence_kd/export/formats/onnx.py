"""ONNX: log-mel features of one utterance to scaled log-likelihoods, for onnxruntime and whatever else reads ONNX."""
from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import numpy as np

from essence_kd.export.format import Format, Source, Written, register_format
from essence_kd.export.onnx_file import FORM, INT8, calibration_features, quantised, scorer
from essence_kd.io.errors import UserError

README = """# {arch}, {num_pdfs} pdfs, as ONNX

`{file}` answers the log-mel features of one utterance with scores for a decoder. IR version 8, opset 17.

| | name | type | shape | |
|---|---|---|---|---|
| input | `feats` | float32 | (1, T, {feat_dim}) | T frames, one every 10 ms, T of at least 1 |
| output | `scores` | float32 | (1, ceil(T / {factor}), {num_pdfs}) | a row every {row_ms:g} ms |

A score is {acoustic_scale:g} x (log p(pdf) - {prior_scale:g} x log prior(pdf)): nothing has to be scaled or divided out
afterwards.{mean} The batch is 1: padding would change the answer. Over utterances of 1 to 1,000 frames, scores differ
from PyTorch's by at most {worst}.

    import numpy, onnxruntime
    session = onnxruntime.InferenceSession("{file}")
    scores, = session.run(["scores"], {{"feats": feats[None]}})  # feats: float32 (T, {feat_dim})

{front_end}

Words: `essence recognize FOLDER GRAPH_DIR a.wav`, which needs no PyTorch; or `essence decode --acoustic-scale 1`
with the scores in an archive."""
FRONT_END = """Features are Kaldi's (`fbank.conf`), of samples at 16-bit scale:

    --sample-frequency={sample_frequency} --num-mel-bins={num_mel_bins_fbank} --low-freq={low_freq:g} --high-freq={high}
    --frame-length={frame_length_ms:g} --frame-shift={frame_shift_ms:g} --preemphasis-coefficient={preemphasis:g}
    --dither=0 --snip-edges=true --window-type=povey --use-energy=false"""


MEAN = {"utterance": " The mean of the utterance is taken off inside.",
        "online": " The running mean is taken off inside, as for an utterance that begins here."}

ARCHITECTURES = ("tdnn", "tdnn_f", "cnn_tdnn", "tdnn_lstm", "blstm")  # that are written node by node
PACKAGES = {"onnx": "onnx", "onnxruntime": "onnxruntime"}
CMN = ("none", "utterance", "online")  # what the graph takes off


def front_end_text(options) -> str:
    """What README.md says of the features."""
    return FRONT_END.format(**asdict(options), high=f"{options.top_freq:g}")


@register_format
class Onnx(Format):
    """One file, model.onnx or model.int8.onnx."""

    name = "onnx"
    architectures = ARCHITECTURES
    packages = PACKAGES
    cmn = CMN
    needs_front_end = False
    int8 = INT8

    def check(self) -> None:
        """Static int8 needs features."""
        check_calibration(self.settings)

    def write(self, folder: Path) -> Written:
        """The file of the network."""
        from essence_kd.export.exporter import front_end

        source, settings = self.source, self.settings
        self.file = "model.int8.onnx" if settings.int8 else "model.onnx"
        (folder / self.file).write_bytes(self._bytes())
        ends = front_end(settings)
        known = source.model.feat_dim == ends.num_mel_bins_fbank
        self.score: Any = None
        return Written(README.format(
            file=self.file, arch=source.about["arch"], num_pdfs=source.model.num_pdfs, feat_dim=source.model.feat_dim,
            factor=source.factor, row_ms=source.row_ms, acoustic_scale=settings.acoustic_scale,
            prior_scale=settings.prior_scale, worst="{worst}",
            mean=MEAN.get(source.about["cmn"], ""),
            front_end=front_end_text(ends) if known else "Features are those that the model was trained on."),
            {"model": self.file})

    def verify(self, folder: Path, feats: np.ndarray) -> np.ndarray:
        """By onnxruntime."""
        self.score = self.score or scorer(folder / self.file)
        return self.score(feats)

    def timed(self, folder: Path) -> Tuple[Callable[[], Any], float]:
        """By onnxruntime."""
        return partial(self.verify, folder, np.zeros((1000, self.source.model.feat_dim), np.float32)), 10.0

    def _bytes(self) -> bytes:
        from essence_kd.export.onnx_network import Network

        source, settings = self.source, self.settings
        net = Network(source.model, FORM[settings.int8])
        net.scores("feats", **score_settings(self))
        data = net.to_bytes([("feats", np.float32, [1, "frames", source.model.feat_dim])],
                            [("scores", np.float32, [1, "rows", source.model.num_pdfs])], metadata(source, settings))
        if settings.int8 is None:
            return data
        return quantised(data, settings.int8, ({"feats": feats[None]} for feats in calibration_of(self)))


def check_calibration(settings) -> None:
    """UserError where static int8 has nothing to look at, or something else has."""
    if settings.int8 == "static" and settings.calibrate is None:
        raise UserError("--int8 static needs --calibrate DATA_DIR, whose features tell how large values become")
    if settings.calibrate is not None and settings.int8 != "static":
        raise UserError(f"--calibrate {settings.calibrate}: is for --int8 static")


def calibration_of(made: Format):
    """Features for static int8."""
    return calibration_features(made.settings.calibrate, made.source.model.feat_dim) if made.settings.calibrate else []


def score_settings(made: Format) -> Dict[str, Any]:
    """Arguments of Network.scores."""
    from essence_kd.am.cmn import cmn_of_model

    source, settings = made.source, made.settings
    return {"cmn": cmn_of_model(source.about, source.model_dir), "acoustic_scale": settings.acoustic_scale,
            "log_priors": np.float32(settings.prior_scale) * source.log_priors}


def metadata(source: Source, settings) -> Dict[str, Any]:
    """What every model file tells of itself."""
    from essence_kd.export.exporter import front_end

    return {"arch": source.about["arch"], "num_pdfs": source.model.num_pdfs, "tree_hash": source.about.get("tree_hash"),
            "frame_subsampling_factor": source.factor, "row_ms": f"{source.row_ms:g}",
            "acoustic_scale": settings.acoustic_scale, "prior_scale": settings.prior_scale,
            "front_end": json.dumps(asdict(front_end(settings)), sort_keys=True)}
