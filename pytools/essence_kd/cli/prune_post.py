"""Prunes posteriors to essence targets: a few (pdf-id, probability) pairs per frame, as a Kaldi Posterior archive.

  essence prune-post --top-k 20 scp:wide.scp ark,scp:post.ark,post.scp
  essence prune-post --input logit 'ark:nnet3-compute exp/tdnn/final.raw scp:feats.scp ark:- |' ark:post.ark
  essence prune-post --select random-prune --min-post 0.01 --seed 1 ark:full.ark compact:ark,scp:post.ark,post.scp

The input holds matrices, one row per frame (--input says what the numbers are, prob unless told), or sparse posteriors,
which are recognised. Selection rules: top-k (the k largest), top-p (the fewest whose sum reaches p, at most max-k),
min-post (all from a threshold on), random-prune (values under the threshold survive at the threshold with probability
value / threshold). Equal values: the lower pdf-id. Mass rules: renorm (a frame sums to 1), keep, residual (stored
as keep; the loss adds the rest as a class). essence.json beside the output says what was done.
"""
from __future__ import annotations

import sys

HELP = "prune posteriors (matrices or sparse archives) to essence targets"


def add_arguments(parser) -> None:
    from essence_kd.distill.options import add_settings_arguments

    add_settings_arguments(parser)
    parser.add_argument("--input", choices=("prob", "log", "logit", "post"), default=None,
                        help="what the input holds: matrices of probabilities (default), log-probabilities or logits, "
                             "or post (a sparse archive; recognised, too)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: OMP_NUM_THREADS or the cores there are")
    parser.add_argument("rspecifier", metavar="RSPECIFIER", help="ark:FILE, scp:FILE or 'ark:COMMAND |'")
    parser.add_argument("wspecifier", metavar="POST-WSPECIFIER",
                        help="ark:, ark,scp:A,S, or one of them after compact:")


def run(args) -> None:
    from essence_kd.distill.options import essence_settings
    from essence_kd.distill.prune import prune

    told = [args.temperature, args.config, *(given for given in args.set or [] if given.startswith("temperature"))]
    tally = prune(args.rspecifier, args.wspecifier, essence_settings(args), kind=args.input, threads=args.threads,
                  keep_temperature=not any(given is not None for given in told))
    print(f"prune-post: {tally}", file=sys.stderr)
