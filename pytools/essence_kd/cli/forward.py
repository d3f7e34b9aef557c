"""Scores of a trained model, or of several combined, for every utterance of a data directory, a row an output frame.

e.g.: essence forward exp/mini/baseline data/mini/dev_hires ark,scp:scores.ark,scores.scp
      essence forward --combine mean exp/mini/teacher_* data/mini/dev_hires ark,scp:scores.ark,scores.scp
"""
from __future__ import annotations

HELP = "scores of a trained model: log-likelihoods, log-probabilities, probabilities or logits"


def add_arguments(parser) -> None:
    parser.add_argument("--output", choices=("loglike", "logprob", "prob", "logit"), default="loglike",
                        help="loglike: log p - prior-scale log prior (default)")
    parser.add_argument("--combine", choices=("mean", "logmean"), default="mean",
                        help="how the posteriors of several models become one (default: mean)")
    parser.add_argument("--weights", metavar="W,W,..", help="a weight a model (default: all the same)")
    parser.add_argument("--prior-scale", type=float, default=1.0, metavar="S", help="of the log prior (default: 1)")
    parser.add_argument("--prior-floor", type=float, default=1e-5, metavar="P", help="least prior of a pdf (default: 1e-5)")
    parser.add_argument("--batch-frames", type=int, default=30000, metavar="N",
                        help="feature frames of a batch (default: 30000)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="on a CPU (default: 1)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--also", nargs=2, action="append", default=[], metavar=("DATA_DIR", "SCORES-WSPECIFIER"),
                        help="another set, by the same models; may be repeated")
    parser.add_argument("model_dirs", metavar="MODEL_DIR", nargs="+", help="of essence train, or a network of Kaldi's")
    parser.add_argument("data_dir", metavar="DATA_DIR", help="data directory whose feats.scp is read")
    parser.add_argument("scores", metavar="SCORES-WSPECIFIER", help="matrices: a row an output frame, a column a pdf")


def run(args) -> None:
    import sys
    import time
    from pathlib import Path

    import numpy as np

    from essence_kd.am.forward import iter_logits, scores
    from essence_kd.am.models import read_model_yaml
    from essence_kd.distill.archives import frame_error
    from essence_kd.distill.ensemble import Ensemble, combine
    from essence_kd.distill.scales import Scale
    from essence_kd.hmm.alignment_dir import read_log_priors
    from essence_kd.io.errors import UserError
    from essence_kd.io.provenance import sidecar_path, write_sidecar
    from essence_kd.io.tables import MatrixWriter

    settings = [read_model_yaml(model_dir) for model_dir in args.model_dirs]
    for key in ("num_pdfs", "frame_subsampling_factor", "tree_hash"):
        for model_dir, other in zip(args.model_dirs, settings):
            if other.get(key) != settings[0].get(key):
                raise UserError(f"{args.model_dirs[0]} has {key} {settings[0].get(key)} and {model_dir} has "
                                f"{other.get(key)}: these models do not belong to one ensemble")
    if len(settings) > 1 and args.output == "logit":
        raise UserError("several models together have no logits: ask for --output prob, logprob or loglike")
    try:
        weights = [float(w) for w in args.weights.split(",")] if args.weights else []
        ensemble = Ensemble([Scale("logit") for _ in settings], weights, args.combine)
    except ValueError as error:
        raise UserError(f"--weights {args.weights}: {error}") from None
    priors = None
    if args.output == "loglike":
        priors = read_log_priors(Path(args.model_dirs[0]) / "priors.txt", settings[0]["num_pdfs"], args.prior_floor)
        priors = priors.astype(np.float32)

    for data_dir, wspecifier in [(args.data_dir, args.scores), *args.also]:
        began, utterances, rows = time.time(), 0, 0
        with MatrixWriter(wspecifier) as writer:
            for together in zip(*(iter_logits(model_dir, Path(data_dir) / "feats.scp", batch_frames=args.batch_frames,
                                              device=args.device, threads=args.threads)
                                  for model_dir in args.model_dirs)):
                utt, logits = together[0]
                if len(together) > 1:  # the log of the combined posterior has the same softmax as logits would
                    try:
                        mean = combine(ensemble, [matrix for _, matrix in together], threads=args.threads)
                    except ValueError as error:
                        raise frame_error(" + ".join(args.model_dirs), utt, error) from None
                    logits = np.log(np.maximum(mean, np.finfo(np.float32).tiny))
                writer.write(utt, scores(logits, args.output, priors, args.prior_scale))
                utterances, rows = utterances + 1, rows + len(logits)
        shift = 10 * settings[0]["frame_subsampling_factor"]
        sidecar = sidecar_path(wspecifier)
        if sidecar is not None:
            write_sidecar(sidecar, {"kind": "scores", "output": args.output, "num_pdfs": settings[0]["num_pdfs"],
                                    "tree_hash": settings[0].get("tree_hash"), "frame_shift_ms": shift,
                                    "num_utts": utterances, "num_frames": rows})
        seconds, audio = time.time() - began, rows * shift / 1000
        print(f"{data_dir}: {utterances} utterances, {audio:.0f} s of audio in {seconds:.1f} s: "
              f"{audio / seconds:.0f} x real time", file=sys.stderr)
