"""Scores of a trained model for every utterance of a data directory, one row an output frame.

e.g.: essence forward exp/mini/baseline data/mini/dev_hires ark,scp:scores.ark,scores.scp
"""
from __future__ import annotations

HELP = "scores of a trained model: log-likelihoods, log-probabilities, probabilities or logits"


def add_arguments(parser) -> None:
    parser.add_argument("--output", choices=("loglike", "logprob", "prob", "logit"), default="loglike",
                        help="loglike: log p - prior-scale log prior (default)")
    parser.add_argument("--prior-scale", type=float, default=1.0, metavar="S")
    parser.add_argument("--prior-floor", type=float, default=1e-5, metavar="P", help="least prior of a pdf (default: 1e-5)")
    parser.add_argument("--batch-frames", type=int, default=30000, metavar="N", help="feature frames of a batch")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("model_dir", metavar="MODEL_DIR")
    parser.add_argument("data_dir", metavar="DATA_DIR")
    parser.add_argument("scores", metavar="SCORES-WSPECIFIER")


def run(args) -> None:
    import sys
    import time
    from pathlib import Path

    from essence_kd.am.forward import iter_logits, log_priors, scores
    from essence_kd.io.settings import read_yaml
    from essence_kd.io.tables import MatrixWriter

    began, utterances, rows = time.time(), 0, 0
    settings = read_yaml(Path(args.model_dir) / "model.yaml")
    priors = None
    if args.output == "loglike":
        priors = log_priors(args.model_dir, settings["num_pdfs"], args.prior_floor)
    with MatrixWriter(args.scores) as writer:
        for utt, logits in iter_logits(args.model_dir, Path(args.data_dir) / "feats.scp",
                                       batch_frames=args.batch_frames, device=args.device, threads=args.threads):
            writer.write(utt, scores(logits, args.output, priors, args.prior_scale))
            utterances, rows = utterances + 1, rows + len(logits)
    seconds, audio = time.time() - began, rows * settings["frame_subsampling_factor"] * 0.01
    print(f"{utterances} utterances, {audio:.0f} s of audio in {seconds:.1f} s: {audio / seconds:.0f} x real time",
          file=sys.stderr)
