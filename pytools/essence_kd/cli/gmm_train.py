"""Trains a GMM-HMM on a data directory with MFCC features (feats.scp, cmvn.scp), after Kaldi's steps/train_mono.sh.

e.g.: essence gmm-train --nj 2 data/mini/train data/mini/lang exp/mini/gmm
"""
from __future__ import annotations

HELP = "train a GMM-HMM (flat start, position-dependent monophones)"


def add_arguments(parser) -> None:
    parser.add_argument("data_dir", metavar="DATA", help="data directory with feats.scp, cmvn.scp, text, utt2spk")
    parser.add_argument("lang_dir", metavar="LANG")
    parser.add_argument("gmm_dir", metavar="GMM_DIR", help="gmm.npz, tree.txt, num_pdfs, phones.txt go there")
    parser.add_argument("--nj", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--num-iters", type=int, default=30, metavar="N", help="passes over the data (default: 30)")
    parser.add_argument("--num-gauss", type=int, default=3000, metavar="N", help="Gaussians in all (default: 3000)")
    parser.add_argument("--min-tokens", type=int, default=20, metavar="N",
                        help="a position of a phone seen less often shares pdfs (default: 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of mixing up (default: 0)")
    parser.add_argument("--map-oov", choices=("true", "false"), default="false",
                        help="take words that the lang lacks as its oov word (default: refuse them)")


def run(args) -> None:
    """Train, save, and say what was trained."""
    from essence_kd.hmm.gmm import TrainOptions, save_gmm, train
    from essence_kd.io.errors import UserError

    for name, least in (("nj", 1), ("num_iters", 4), ("num_gauss", 1), ("min_tokens", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least {least}")
    model = train(args.data_dir, args.lang_dir, TrainOptions(
        num_gauss=args.num_gauss, num_iters=args.num_iters, min_tokens=args.min_tokens, nj=args.nj, seed=args.seed,
        map_oov=args.map_oov == "true"))
    save_gmm(args.gmm_dir, model)
    about = model.meta
    print(f"{args.gmm_dir}: {model.num_pdfs} pdfs, {len(model.weights)} Gaussians, {about['utterances']} utterances of "
          f"which {about['failed']} failed, log-likelihood per frame {about['log_likelihood_per_frame']:.3f}, "
          f"{about['seconds']} s")
