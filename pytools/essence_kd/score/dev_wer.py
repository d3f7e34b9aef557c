"""Word error rate of a model that is still learning, by the commands that decode and count at the end."""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Optional

import essence_kd
from essence_kd.am.settings import EarlyStoppingSettings
from essence_kd.decode.decoder import DECODERS
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import sha256_file
from essence_kd.io.text import read_words
from essence_kd.score import wer


class DevWer:
    """Decodes one set with one graph: what ``am.trainer.train`` takes as ``dev_wer``."""

    def __init__(self, settings: EarlyStoppingSettings, device: Optional[str] = None) -> None:
        """Raises UserError where the set, the graph or the decoder is not there."""
        self.settings, self.device = settings, device
        if settings.decoder not in (None, "auto"):
            DECODERS.get(settings.decoder, "early_stopping.decoder")
        for name, folder, files in (("data", settings.data, ("feats.scp", "text")),
                                    ("graph", settings.graph, ("graph.npz", "words.txt"))):
            for file in files:
                if not folder or not (Path(folder) / file).is_file():
                    raise UserError(f"early_stopping.{name} is '{folder}': there is no {file} in it")
        self.reference = read_words(Path(settings.data) / "text")
        self.fingerprint = " ".join(sha256_file(path)[:16] for path in (
            Path(settings.data) / "feats.scp", Path(settings.data) / "text", Path(settings.graph) / "graph.npz"))

    def __call__(self, model_dir: Path) -> float:
        """WER of a model directory in percent, at no word insertion penalty."""
        s = self.settings
        with tempfile.TemporaryDirectory(dir=model_dir) as scratch:
            scores = f"ark:{scratch}/scores.ark"
            self._run("forward", *(["--device", self.device] if self.device else []), model_dir, s.data, scores)
            options = [f"--{name.replace('_', '-')}={getattr(s, name)}" for name in ("decoder", "acoustic_scale")
                       if getattr(s, name) is not None]
            self._run("decode", *options, s.graph, scores, f"{scratch}/decode")
            hypothesis = Path(scratch) / "decode" / "hyp.txt"
            return wer.score(self.reference, read_words(hypothesis), ref_name=f"{s.data}/text",
                             hyp_name=str(hypothesis)).total.wer

    @staticmethod
    def _run(*words) -> None:
        """An essence command in a process of its own; its last line where it fails."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        main = str(Path(essence_kd.__file__).with_name("__main__.py"))
        done = subprocess.run([sys.executable, main, *map(str, words)], env=environment, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise UserError(f"decoding for early stopping failed: {reason}")
