"""A model directory of Kaldi's nnet3 with its graph, for nnet3-latgen-faster, online2 and steps/nnet3/decode.sh."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from essence_kd.am.cmn import OnlineMean
from essence_kd.export.format import Written, register_format
from essence_kd.export.kaldi import KaldiFormat, write_options
from essence_kd.io.provenance import write_text

README = """# {arch}, {num_pdfs} pdfs, as a network of Kaldi's nnet3

`final.mdl`: transition model, network and priors; `graph/`: HCLG.fst over its transition-ids, words and phones.
Features are Kaldi's log-mel filterbanks (`conf/fbank.conf`): `steps/make_fbank.sh --fbank-config conf/fbank.conf`, or
those of `essence make-feats`. The network answers at frames 0, {factor}, {twice}, ..., so Kaldi's programs need
`--frame-subsampling-factor={factor}`, which scripts read from `frame_subsampling_factor`.

## Whole utterances

    steps/nnet3/decode.sh --config conf/decode.config --nj 4 FOLDER/graph DATA FOLDER/decode_test

or, without scripts,

    nnet3-latgen-faster --frame-subsampling-factor={factor} --acoustic-scale={acoustic_scale:g} --beam={beam:g} \\
      --max-active={max_active} --word-symbol-table=graph/words.txt final.mdl graph/HCLG.fst "FEATS" ark:lat.ark

where FEATS is `{feats}`.{cmn}
{online}
{edges}
"""
ONLINE = """
## While speech goes on

    online2-wav-nnet3-latgen-faster --config=conf/online.conf --word-symbol-table=graph/words.txt \\
      final.mdl graph/HCLG.fst ark:SPK2UTT scp:WAV_SCP ark:lat.ark

in this folder, since conf/online.conf names files of it. WAV_SCP is of wave files, one per utterance.
"""
CMN = {
    "none": ("scp:DATA/feats.scp", ""),
    "utterance": ("ark:apply-cmvn scp:cmvn.scp scp:DATA/feats.scp ark:- |", """ Each utterance's mean is taken off:
cmvn.scp is of utterances (compute-cmvn-stats without --spk2utt). Scripts go by speakers: give each utterance a speaker
of its own first, `utils/data/modify_speaker_info.sh --utts-per-spk-max 1`, and then `steps/compute_cmvn_stats.sh`. A
model of a running mean (`data.cmn: online`) needs none of this, and can be used while speech goes on."""),
    "speaker": ("ark:apply-cmvn --utt2spk=ark:DATA/utt2spk scp:DATA/cmvn.scp scp:DATA/feats.scp ark:- |",
                " Each speaker's mean is taken off."),
    "online": ("ark:apply-cmvn-online --config=conf/online_cmvn.conf global_cmvn.stats scp:DATA/feats.scp ark:- |",
               " A running mean is taken off, which begins anew with each utterance; scripts and online2 go on with it "
               "within a speaker."),
}


@register_format
class Nnet3(KaldiFormat):
    """final.mdl, graph/, and what Kaldi's scripts look for beside them."""

    name = "nnet3"
    cmn = ("none", "utterance", "speaker", "online")
    features = "fbank"

    def write(self, folder: Path) -> Written:
        """All files."""
        from essence_kd.export.exporter import front_end

        s, about = self.settings, self.source.about
        kind, online = about["cmn"], isinstance(self.model_cmn, OnlineMean)
        self.write_graph(folder / "graph")
        self.write_model(folder / "final.mdl")
        write_text(folder / "phones.txt", (folder / "graph" / "phones.txt").read_text(encoding="utf-8"))
        write_text(folder / "frame_subsampling_factor", f"{self.source.factor}\n")
        self.write_features(folder / "conf" / "fbank.conf", front_end(s))
        search = self.search_options()
        write_text(folder / "conf" / "decode.config",
                   f"acwt={s.acoustic_scale:g}\nbeam={s.beam:g}\nlattice_beam={search['lattice-beam']:g}\n"
                   f"max_active={s.max_active}\nmin_active={search['min-active']}\n")
        text = f"--norm-means={str(kind != 'none').lower()} --norm-vars=false"
        more = {"feature-type": "fbank", "fbank-config": "conf/fbank.conf"}
        if online:
            window = self.model_cmn.window
            options = {"norm-vars": False, "cmn-window": window, "speaker-frames": window,
                       "global-frames": min(self.model_cmn.prior, window)}
            write_options(folder / "conf" / "online_cmvn.conf", options)
            text = (folder / "conf" / "online_cmvn.conf").read_text(encoding="utf-8").replace("\n", " ").strip()
            write_text(folder / "online_cmvn", "true\n")
            self.write_global_mean(folder / "global_cmvn.stats")
            more.update({"cmvn-config": "conf/online_cmvn.conf", "global-cmvn-stats": "global_cmvn.stats"})
        write_text(folder / "cmvn_opts", text + "\n")
        if kind in ("none", "online"):
            write_options(folder / "conf" / "online.conf", {**more, **search})
        feats, said = CMN[kind]
        return Written(README.format(
            arch=about["arch"], num_pdfs=self.source.model.num_pdfs, factor=self.source.factor,
            twice=2 * self.source.factor, beam=s.beam,
            acoustic_scale=s.acoustic_scale, max_active=s.max_active, feats=feats, cmn=said,
            online=ONLINE if kind in ("none", "online") else "", edges=self.edges_text()), {"model": "final.mdl"})

    def verify(self, folder: Path, feats: np.ndarray) -> np.ndarray:
        """By NumPy, of final.mdl as it lies there."""
        if self.source.about["cmn"] == "speaker":  # PyTorch's side has no speakers
            return None
        return self.verify_model(folder / "final.mdl", feats)
