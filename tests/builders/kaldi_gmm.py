"""A monophone GMM as objects of kaldi-hmm-gmm (Kaldi's own code), which knows no other trees: the reference of ours."""
from __future__ import annotations

import os
import sys
from typing import List

import numpy as np

from essence_kd.hmm.gmm import Gmm
from essence_kd.hmm.lang import format_topology


def monophone_context(model: Gmm):
    """(kaldi-hmm-gmm's context dependency, its topology) of a model without context."""
    import kaldi_hmm_gmm as khg

    topo = model.transitions.topo
    topology = khg.HmmTopology()
    topology.read(format_topology([([phone], states) for phone, states in sorted(topo.items())]))
    first = {phone: pdf for phone, state, pdf, _ in model.transitions.tuples.tolist() if state == 0}
    classes = [[phone for phone in first if first[phone] == pdf] for pdf in sorted(set(first.values()))]
    return khg.monophone_context_dependency_shared(classes, topology.get_phone_to_num_pdf_classes()), topology


def transition_model(model: Gmm):
    """(transition model, context dependency) of kaldi-hmm-gmm with this model's probabilities."""
    import kaldi_hmm_gmm as khg

    context, topology = monophone_context(model)
    transitions = khg.TransitionModel(context, topology)
    with quiet():
        transitions.mle_update(model.transitions.probs * 1e6, khg.MleTransitionUpdateConfig(floor=1e-10, mincount=0.0))
    return transitions, context


def acoustic_model(model: Gmm):
    """kaldi-hmm-gmm's AmDiagGmm of the same Gaussians."""
    import kaldi_hmm_gmm as khg

    out = khg.AmDiagGmm()
    for pdf in range(model.num_pdfs):
        own = slice(int(model.offsets[pdf]), int(model.offsets[pdf + 1]))
        diag = khg.DiagGmm(own.stop - own.start, model.dim)
        diag.set_weights(model.weights[own].astype(np.float32))
        diag.set_invvars_and_means((1.0 / model.variances[own]).astype(np.float32), model.means[own].astype(np.float32))
        out.add_pdf(diag)
    out.compute_gconsts()
    return out


def graph_compiler(transitions, context, lexicon, disambig: List[int]):
    """kaldi-hmm-gmm's compiler of training graphs without transition probabilities.

    transitions, context: of :func:`transition_model`, which must live as long as the compiler; lexicon: L as a kaldifst
    transducer; disambig: phone-ids of its disambiguation symbols.
    """
    import kaldi_hmm_gmm as khg

    options = khg.TrainingGraphCompilerOptions(transition_scale=0.0, self_loop_scale=0.0, reorder=True)
    return khg.TrainingGraphCompiler(transitions, context, lexicon, disambig, options)


class quiet:
    """Silences what C++ code writes to stderr (Kaldi's log lines) while a block runs."""

    def __enter__(self):
        sys.stderr.flush()
        self.saved = os.dup(2)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)

    def __exit__(self, *exc):
        os.dup2(self.saved, 2)
        os.close(self.saved)
