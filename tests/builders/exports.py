"""Untrained models that hear 40 log-mels, and audio for them."""
import numpy as np
import torch

from essence_kd.am.models.registry import build_model
from essence_kd.io.settings import dump_settings

SIZES = {"tdnn": {"hidden": 24, "dilations": [1, 2, 0], "bottleneck": 12},
         "tdnn_f": {"hidden": 20, "bottleneck": 8, "dilations": [1, 0, 3], "prefinal": 12},
         "cnn_tdnn": {"channels": [4, 6], "freq_strides": [2, 1], "hidden": 16, "bottleneck": 8, "dilations": [1, 2]},
         "tdnn_lstm": {"hidden": 12, "cells": 10, "dilations": [1, 2]},
         "blstm": {"cells": 10, "hidden": 12, "channels": [4], "freq_strides": [2]},
         "conformer": {"hidden": 8, "heads": 2, "feed_forward": 12, "blocks": 1}}


def make_model(folder, arch="tdnn", *, num_pdfs=12, cmn="utterance", tree_hash="cafe", feat_dim=40, **options):
    """A model directory with random parameters, and priors of which one is 0; the folder."""
    torch.manual_seed(1)
    options = {**SIZES[arch], **options}
    model = build_model(arch, options, feat_dim=feat_dim, num_pdfs=num_pdfs, frame_subsampling_factor=3)
    with torch.no_grad():
        model.output.weight.mul_(4)
        model.feat_inv_std.uniform_(0.3, 0.6)
        model.feat_mean.uniform_(-1, 1)
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                value.uniform_(-1, 1)
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / "final.pt")
    dump_settings({"arch": arch, "model": options, "feat_dim": feat_dim, "num_pdfs": num_pdfs,
                   "frame_subsampling_factor": 3, "cmn": cmn, "tree_hash": tree_hash}, folder / "model.yaml")
    priors = np.arange(num_pdfs) / np.arange(num_pdfs).sum()
    (folder / "priors.txt").write_text("".join(f"{p:.9g}\n" for p in priors))
    return folder
