"""Trains a GMM-HMM on a data directory with MFCC features (feats.scp, cmvn.scp), after Kaldi's steps/train_*.sh.

e.g.: essence gmm-train --nj 2 --kind tri2 data/mini/train data/mini/lang exp/mini/gmm
"""
from __future__ import annotations

from essence_kd.hmm.gmm_kinds import KINDS
from essence_kd.hmm.gmm_training import TrainOptions, train
from essence_kd.io.errors import UserError
from essence_kd.io.options import given, tell_defaults

HELP = "train a GMM-HMM (monophones from a flat start, tied triphones, LDA+MLLT, speaker adaptation)"


def add_arguments(parser) -> None:
    parser.add_argument("data_dir", metavar="DATA", help="data directory with feats.scp, cmvn.scp, text, utt2spk")
    parser.add_argument("lang_dir", metavar="LANG")
    parser.add_argument("gmm_dir", metavar="GMM_DIR", help="tree, final.mdl and what else Kaldi has there go there")
    parser.add_argument("--kind", choices=KINDS, help="the model; what it needs before is trained first")
    parser.add_argument("--nj", type=int, metavar="N", help="processes")
    parser.add_argument("--num-leaves", type=int, metavar="N",
                        help="leaves of the decision tree at most; 0: one per 600 frames, 100 to 4000")
    parser.add_argument("--min-gain", type=float, metavar="G",
                        help="log-likelihood that a split of the tree must bring (build-tree's --thresh); "
                        "with less, a small corpus has more leaves")
    parser.add_argument("--num-gauss", type=int, metavar="N", help="Gaussians in all; 0: 6 per leaf")
    parser.add_argument("--mono-gauss", type=int, metavar="N", help="Gaussians of the monophones")
    parser.add_argument("--mono-iters", type=int, metavar="N", help="passes over the data for monophones")
    parser.add_argument("--num-iters", type=int, metavar="N", help="passes over the data for each other model")
    parser.add_argument("--lda-dim", type=int, metavar="N", help="dimensions of LDA")
    parser.add_argument("--splice", type=int, metavar="N", help="frames on each side that LDA sees")
    parser.add_argument("--seed", type=int, metavar="N", help="of mixing up and of clusters of phones")
    parser.add_argument("--map-oov", choices=("true", "false"),
                        help="take words that the lang lacks as its oov word; false: refuse them")
    tell_defaults(parser, TrainOptions)


def run(args) -> None:
    """Train, save, and say what was trained."""
    options = TrainOptions(**given(args, TrainOptions))
    for name, least in (("nj", 1), ("num_leaves", 0), ("min_gain", 0), ("num_gauss", 0), ("mono_gauss", 1),
                        ("mono_iters", 4), ("num_iters", 4), ("lda_dim", 1), ("splice", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name):g}: must be at least {least}")
    model = train(args.data_dir, args.lang_dir, options, args.gmm_dir)
    about = model.meta
    print(f"{args.gmm_dir}: {options.kind}: {model.num_pdfs} pdfs, {len(model.weights)} Gaussians, "
          f"{about['utterances']} utterances of which {about['failed']} failed, log-likelihood per frame "
          f"{about['log_likelihood_per_frame']:.3f}, {about['seconds']} s")
