"""Scores of a trained model, or of several combined, for every utterance of a data directory, one row per output frame.

e.g.: essence forward exp/mini/baseline data/mini/dev_hires ark,scp:scores.ark,scores.scp
      essence forward --combine mean exp/mini/teacher_* data/mini/dev_hires ark,scp:scores.ark,scores.scp
"""
from __future__ import annotations

import sys

from essence_kd.am.settings import ForwardSettings
from essence_kd.distill.ensemble import COMBINE
from essence_kd.io.options import given, tell_defaults

HELP = "scores of a trained model: log-likelihoods, log-probabilities, probabilities or logits"


def add_arguments(parser) -> None:
    parser.add_argument("--output", choices=("loglike", "logprob", "prob", "logit"),
                        help="loglike: log p - prior-scale log prior")
    parser.add_argument("--combine", choices=COMBINE, help="how the posteriors of several models become one")
    parser.add_argument("--weights", metavar="W,W,..", help="a weight per model (default: all the same)")
    parser.add_argument("--prior-scale", type=float, metavar="S", help="of the log prior")
    parser.add_argument("--prior-floor", type=float, metavar="P", help="least prior of a pdf")
    parser.add_argument("--batch-frames", type=int, metavar="N", help="feature frames of a batch")
    parser.add_argument("--stream", action="store_const", const=True,
                        help="compute each utterance in chunks, as while it is spoken, and tell what a chunk takes")
    parser.add_argument("--chunk-ms", type=float, metavar="MS", help="of --stream")
    parser.add_argument("--threads", type=int, metavar="N", help="on a CPU")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--also", nargs=2, action="append", default=[], metavar=("DATA_DIR", "SCORES-WSPECIFIER"),
                        help="another set, by the same models; may be repeated")
    parser.add_argument("model_dirs", metavar="MODEL_DIR", nargs="+", help="of essence train, or a network of Kaldi's")
    parser.add_argument("data_dir", metavar="DATA_DIR", help="data directory whose feats.scp is read")
    parser.add_argument("scores", metavar="SCORES-WSPECIFIER",
                        help="matrices: one row per output frame, one column per pdf")
    tell_defaults(parser, ForwardSettings)


def run(args) -> None:
    from essence_kd.am.forward import Scorer

    scorer = Scorer(args.model_dirs, ForwardSettings(**given(args, ForwardSettings)))
    for data_dir, wspecifier in [(args.data_dir, args.scores), *args.also]:
        print(scorer.write(data_dir, wspecifier), file=sys.stderr)
