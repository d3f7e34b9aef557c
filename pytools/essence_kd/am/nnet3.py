"""Kaldi's nnet3 networks as models of this project: a directory with final.mdl, cmvn_opts and a model.yaml.

Its ``arch`` is nnet3. Networks that were trained on every frame answer every third one here
(``frame_subsampling_factor: 3``), as all others do.
"""
from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

import numpy as np

from essence_kd.am.models import read_model_yaml
from essence_kd.io.errors import UserError
from essence_kd.io.pipes import check_pipe
from essence_kd.io.specifiers import read_scp
from essence_kd.io.tables import read_matrices
from essence_kd.io.text import read_lines

_OPTION = re.compile(r"--[a-z][a-z0-9-]*=(true|false|[-+.0-9e]+)")


def is_nnet3(model_dir) -> bool:
    """Whether a model directory holds a network of Kaldi's."""
    return (Path(model_dir) / "final.mdl").is_file() and not (Path(model_dir) / "final.pt").is_file()


def logits_rspecifier(model_dir, feats_scp, listed=None) -> str:
    """The pipe of Kaldi's programs that writes log-probabilities (ceil(T / factor), num_pdfs) of every utterance.

    ``listed``: an scp of some of the utterances of ``feats_scp``, beside which their means and speakers lie.
    Raises UserError where a program or a file is missing.
    """
    model_dir, feats_scp = Path(model_dir), Path(feats_scp)
    check_pipe("nnet3-compute", f"{model_dir}: is a network of Kaldi's, whose programs open what their input names")
    for program in ("nnet3-compute", "nnet3-am-copy", "apply-cmvn"):
        if shutil.which(program) is None:
            raise UserError(f"{model_dir}: is a network of Kaldi's, and '{program}' is not found: set KALDI_ROOT")
    for file in (model_dir / "cmvn_opts", feats_scp.parent / "cmvn.scp", feats_scp.parent / "utt2spk"):
        if not file.is_file():
            raise UserError(f"{file}: missing; the network {model_dir} takes features with their means removed")
    settings = read_model_yaml(model_dir)
    options = _options(str((settings.get("model") or {}).get("compute") or ""), model_dir / "model.yaml")
    cmvn = _options(" ".join(line for _, line in read_lines(model_dir / "cmvn_opts")), model_dir / "cmvn_opts")
    raw = f"nnet3-am-copy --raw=true {shlex.quote(str(model_dir / 'final.mdl'))} - |"
    words = ["apply-cmvn", *cmvn, f"--utt2spk=ark:{feats_scp.parent / 'utt2spk'}",
             f"scp:{feats_scp.parent / 'cmvn.scp'}", f"scp:{listed or feats_scp}", "ark:-"]
    feats = f"ark,s,cs:{shlex.join(words)} |"
    factor = settings["frame_subsampling_factor"]
    command = ["nnet3-compute", "--use-gpu=no", f"--frame-subsampling-factor={factor}", *options, raw, feats, "ark:-"]
    return f"ark:{shlex.join(command)} |"


def _options(text: str, path: Path) -> List[str]:
    """Options of a model directory for Kaldi's programs: numbers and switches, since a name of a file may be a pipe."""
    words = text.split()
    for word in words:
        if not _OPTION.fullmatch(word):
            raise UserError(f"{path}: '{word}' is no option that a network may ask for: write --name=NUMBER, "
                            "--name=true or --name=false")
    return words


def iter_logits(model_dir, feats_scp, only: Optional[Sequence[str]] = None) -> Iterator[Tuple[str, np.ndarray]]:
    """(utterance, float32 (ceil(T / factor), num_pdfs) log-probabilities) of every utterance (or of ``only`` these), in
    the order of the scp.

    Kaldi's programs pass over what they cannot use; here that is a UserError, which names the utterance.
    """
    if only is not None and not only:
        return
    with contextlib.ExitStack() as stack:
        listed = None
        utts: Iterator[str] = (utt for _, utt, _, _ in read_scp(str(feats_scp)))
        if only is not None:
            listed = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "feats.scp"
            listed.write_text("".join(f"{utt} {place}\n" for utt, place in _lines(feats_scp, set(only))),
                              encoding="utf-8")
            utts = iter(only)
        for utt, logits in read_matrices(logits_rspecifier(model_dir, feats_scp, listed)):
            _check_turn(model_dir, feats_scp, utt, next(utts, None))
            yield utt, logits
        _check_turn(model_dir, feats_scp, None, next(utts, None))


def _lines(feats_scp, only) -> Iterator[Tuple[str, str]]:
    """(utterance, place) of the lines of an scp that are among ``only``."""
    for _, utt, place, span in read_scp(str(feats_scp)):
        if utt in only:
            yield utt, f"{place}[{span}]" if span else place


def _check_turn(model_dir, feats_scp, utt: Optional[str], wanted: Optional[str]) -> None:
    if utt != wanted:
        raise UserError(f"{model_dir}: nnet3-compute answers nothing for utterance {wanted} of {feats_scp}; look at "
                        "what it says above, and whether cmvn.scp beside the features has the utterance's speaker")
