"""Trains a GMM-HMM on a data directory with MFCC features (feats.scp, cmvn.scp), after Kaldi's steps/train_mono.sh.

e.g.: essence gmm-train --nj 2 data/mini/train data/mini/lang exp/mini/gmm
"""
from __future__ import annotations

from essence_kd.hmm.gmm import save_gmm
from essence_kd.hmm.gmm_training import TrainOptions, train
from essence_kd.io.errors import UserError
from essence_kd.io.options import given, tell_defaults

HELP = "train a GMM-HMM (flat start, position-dependent monophones)"


def add_arguments(parser) -> None:
    parser.add_argument("data_dir", metavar="DATA", help="data directory with feats.scp, cmvn.scp, text, utt2spk")
    parser.add_argument("lang_dir", metavar="LANG")
    parser.add_argument("gmm_dir", metavar="GMM_DIR", help="gmm.npz, tree.txt, num_pdfs, phones.txt go there")
    parser.add_argument("--nj", type=int, metavar="N", help="processes")
    parser.add_argument("--num-iters", type=int, metavar="N", help="passes over the data")
    parser.add_argument("--num-gauss", type=int, metavar="N", help="Gaussians in all")
    parser.add_argument("--min-tokens", type=int, metavar="N", help="a position of a phone seen less often shares pdfs")
    parser.add_argument("--seed", type=int, metavar="N", help="of mixing up")
    parser.add_argument("--map-oov", choices=("true", "false"),
                        help="take words that the lang lacks as its oov word; false: refuse them")
    tell_defaults(parser, TrainOptions)


def run(args) -> None:
    """Train, save, and say what was trained."""
    options = TrainOptions(**given(args, TrainOptions))
    for name, least in (("nj", 1), ("num_iters", 4), ("num_gauss", 1), ("min_tokens", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least {least}")
    model = train(args.data_dir, args.lang_dir, options)
    save_gmm(args.gmm_dir, model)
    about = model.meta
    print(f"{args.gmm_dir}: {model.num_pdfs} pdfs, {len(model.weights)} Gaussians, {about['utterances']} utterances of "
          f"which {about['failed']} failed, log-likelihood per frame {about['log_likelihood_per_frame']:.3f}, "
          f"{about['seconds']} s")
