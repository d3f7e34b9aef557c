"""Tells what a posterior archive holds, so that k can be chosen before any training.

  essence post-stats --alignment scp:ali/ali.scp --json stats.json --plot f_k.png scp:full.scp
  essence post-stats --hours 927 --top-k 20 scp:wide.scp
  essence post-stats --teacher-input logit --teacher scp:t1.scp --teacher scp:t2.scp scp:full.scp

Mean retained mass f_k, the k for 90, 95 and 99 % of the mass, entropy, agreement with an alignment, disagreement of
teachers, bytes per frame in every form, and what a corpus of --hours would take. A table on stdout; --json has it all.
"""
from __future__ import annotations

import importlib.util
import os
import sys

HELP = "statistics of a posterior archive: retained mass, entropy, agreement, sizes, a forecast"


def add_arguments(parser) -> None:
    from essence_kd.distill.archives import WIDE
    from essence_kd.distill.essence import EssenceSettings
    from essence_kd.io.frames import FRAME_SHIFT_MS

    parser.add_argument("--input", choices=("prob", "log", "logit", "post"), default=None,
                        help="what matrices hold (default: prob); post: a sparse archive (recognised, too)")
    parser.add_argument("--alignment", metavar="ALI-RSPECIFIER", help="vectors of pdf-ids to compare with")
    parser.add_argument("--frame-subsampling-factor", type=int, metavar="N",
                        help="alignment frames for one frame of posteriors (default: as the sidecar says, else 1)")
    parser.add_argument("--teacher", action="append", default=[], metavar="RSPECIFIER",
                        help="a teacher's matrices, to measure its distance from these (more than once)")
    parser.add_argument("--teacher-input", choices=("prob", "log", "logit"),
                        help="what the teachers' matrices hold (default: as --input)")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", help="f_k against k: .png, .pdf or .svg")
    parser.add_argument("--hours", type=float, metavar="H", help="forecast disk and time for a corpus of H hours")
    parser.add_argument("--frame-shift-ms", type=float, metavar="MS",
                        help="of the forecast (default: as the sidecar says, else "
                             f"{FRAME_SHIFT_MS:g})")
    parser.add_argument("--keep", type=int, default=WIDE, metavar="N",
                        help="entries of a wide archive (default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=EssenceSettings.top_k, metavar="K",
                        help="entries of an essence (default: %(default)s)")
    parser.add_argument("--max-frames", type=int, metavar="N",
                        help="look at the first N frames, to the end of their utterance (default: all)")
    parser.add_argument("--every", type=int, metavar="N", help="look at every N-th utterance (default: all)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: OMP_NUM_THREADS or the cores there are")
    parser.add_argument("rspecifier", metavar="RSPECIFIER", help="matrices or sparse posteriors")


def run(args) -> None:
    from essence_kd.distill.stats import bytes_per_frame, collect, forecast, plot
    from essence_kd.io.errors import UserError
    from essence_kd.io.frames import FRAME_SHIFT_MS
    from essence_kd.io.options import given
    from essence_kd.io.provenance import atomic_write, sidecar_path, write_sidecar

    kind = os.path.splitext(args.plot or "")[1][1:].lower()
    if args.plot and kind not in ("png", "pdf", "svg"):
        raise UserError(f"--plot {args.plot}: the name must end in .png, .pdf or .svg")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot: the package matplotlib is not here (pip install matplotlib)")
    for name, good in (("hours", args.hours is None or 0 < args.hours < float("inf")),
                       ("frame_shift_ms", args.frame_shift_ms is None or 0 < args.frame_shift_ms < float("inf")),
                       ("keep", args.keep > 0), ("top_k", args.top_k > 0),
                       ("max_frames", args.max_frames is None or args.max_frames >= 0),
                       ("every", args.every is None or args.every > 0)):
        if not good:
            raise UserError(f"--{name.replace('_', '-')} cannot be {getattr(args, name):g}")
    own = sidecar_path(args.rspecifier)
    if args.json and own and os.path.realpath(args.json) == os.path.realpath(own):
        raise UserError(f"--json {args.json}: is the sidecar of {args.rspecifier}; name another file")
    result = collect(args.rspecifier, kind=args.input, alignments=args.alignment,
                     factor=args.frame_subsampling_factor, teachers=args.teacher, teacher_kind=args.teacher_input,
                     **given(args, collect))
    result["bytes_per_frame"] = bytes_per_frame(result["num_pdfs"], args.keep, args.top_k)
    if args.hours is not None:
        shift = args.frame_shift_ms or result["frame_shift_ms"] or FRAME_SHIFT_MS
        result["forecast"] = forecast(result["bytes_per_frame"], args.hours, shift,
                                      result.get("select_frames_per_second"))
    if args.json:
        write_sidecar(args.json, result)
    if args.plot:
        with atomic_write(args.plot) as staged:
            plot(result, str(staged), kind)
    print(report(result))
    sys.stdout.flush()


def report(result) -> str:
    """The table for people."""
    from essence_kd.distill.mass_rules import MASS_RULES

    f = result["f_k"]
    ks = [k for k in (1, 2, 5, 10, 20, 40, 100, 200, 500, 1000, 5000) if k < len(f)] + [len(f)]
    of_kept = ", of the stored entries alone" if result["form"] == "sparse" else ""
    mass = result["mass"]
    scaled = ", which were scaled to 1" if mass in MASS_RULES and MASS_RULES.get(mass).rescales else ""
    lines = [f"{result['num_utts']} utterances, {result['num_frames']} frames, "
             f"{result['num_pdfs'] or '?'} pdfs ({result['form']}{of_kept}{scaled})",
             "k     " + " ".join(f"{k:>7}" for k in ks), "f_k   " + " ".join(f"{f[k - 1]:>7.4f}" for k in ks)]
    for mass, reach in result["k_for_mass"].items():
        of = [f"{name.replace('_', ' ')} {'-' if k is None else k}" for name, k in reach.items()]
        lines.append(f"k for {float(mass):.0%} of the mass: {', '.join(of)}")
    lines.append(f"entropy {result['entropy_nats']:.3f} nats (perplexity {result['perplexity']:.2f})")
    if "alignment" in result:
        ali = result["alignment"]
        recall = ", ".join(f"{float(v):.3f} in the top {k}" for k, v in ali["recall_at_k"].items())
        lines.append(f"aligned pdf-id: probability {ali['mean_probability']:.3f}; {recall}")
    if "disagreement" in result:
        names = result["disagreement"]["teachers"]
        differs = result["disagreement"]["top1_differs"]
        for i, (name, kl) in enumerate(zip(names, result["disagreement"]["kl_from_ensemble_nats"])):
            lines.append(f"{name}: KL from the ensemble {kl:.3f} nats; another best class in {differs[i][-1]:.1%}")
    lines.append("bytes per frame: "
                 + ", ".join(f"{form} {size:g}" for form, size in result["bytes_per_frame"].items()))
    if "forecast" in result:
        ahead = result["forecast"]
        sizes = ", ".join(f"{form} {ahead[form + '_bytes'] / 1e9:.4g} GB" for form in result["bytes_per_frame"])
        seconds = ahead["select_seconds"]
        time = f"; selection {seconds / 60:.0f} min at the speed seen here" if seconds else ""
        lines.append(f"{ahead['hours']:g} h at {ahead['frame_shift_ms']:g} ms: {ahead['frames'] / 1e6:.1f} M frames; "
                     f"{sizes}{time}")
    return "\n".join(lines)
