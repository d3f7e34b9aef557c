"""Decode scores (log-likelihoods, one row per output frame) with a graph made by 'essence make-graph'.

  essence decode exp/mini/graph scp:scores.scp exp/mini/baseline/decode_eval
  essence decode --sweep data/mini/dev/text exp/mini/graph ark:dev.ark exp/mini/baseline/decode_dev
  essence decode --scale-from exp/mini/baseline/decode_dev/sweep.json exp/mini/graph ark:eval.ark OUT_DIR
  essence decode --nj 2 --jobs-file jobs.txt exp/mini/graph
  essence decode --decoder kaldi-lattice exp/mini_kaldi/graph scp:scores.scp OUT_DIR
A line of jobs.txt: SCORES OUT_DIR [SWEEP_JSON|- [DATA_DIR|-]]; the graph is loaded once for all of them.

OUT_DIR gets hyp.txt (every utterance of the scores), hyp.ctm and decode.json. A path costs the graph's weights plus
the word insertion penalty per word, less acoustic scale x score. k2 is taken from this Python, from $ESSENCE_K2_PYTHON,
or from .venv-k2 of the work directory or the checkout. kaldi-lattice runs a compiled Kaldi's latgen-faster-mapped on
HCLG.fst, final.mdl and phones/word_boundary.int of GRAPH_DIR, and also leaves lat.gz and log/. Its SCORES may be
lattices that Kaldi's scripts made of DATA_DIR's utterances: 'lat:gunzip -c DIR/lat.*.gz |'.
"""
from __future__ import annotations

import os
import shlex
from pathlib import Path

from essence_kd.io.errors import UserError

HELP = "words from scores by k2, kaldi-decoder or a compiled Kaldi; word times, n-best, lattices, sweeps of scales"


def add_arguments(parser) -> None:
    from essence_kd.decode.decoder import AUTO, DECODERS, Request
    from essence_kd.decode.options import add_option_arguments
    from essence_kd.io.options import tell_defaults

    parser.add_argument("graph", metavar="GRAPH_DIR", help="directory with graph.npz")
    parser.add_argument("scores", metavar="SCORES-RSPECIFIER", nargs="?",
                        help="matrices: one row per frame, one column per pdf")
    parser.add_argument("out_dir", metavar="OUT_DIR", nargs="?")
    parser.add_argument("--jobs-file", metavar="FILE", help="several sets, one per line (see above)")
    parser.add_argument("--decoder", metavar="NAME", default="auto",
                        help=f"{', '.join(DECODERS.names(plugins=False))}, one of a plugin (ESSENCE_PLUGINS), or "
                        f"%(default)s (default): {AUTO[0]} where it is installed, else {AUTO[1]} with a notice")
    parser.add_argument("--scale-from", metavar="SWEEP_JSON", help="take scale and penalty from a sweep's best")
    parser.add_argument("--data", metavar="DATA_DIR", help="write hyp.ctm in times and channels of the recordings that "
                        "segments and reco2file_and_channel name (default: every utterance is a recording)")
    parser.add_argument("--nj", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--n-best", type=int, metavar="N",
                        help="also write nbest.txt and nbest.cost: the N best different word sequences")
    parser.add_argument("--lattices", action="store_true", default=None,
                        help="also write lat.txt, lattices in Kaldi's text form")
    parser.add_argument("--old-lm", metavar="ARPA",
                        help="the n-gram model that is in the graph (kaldi-lattice: its G.fst)")
    parser.add_argument("--new-lm", metavar="ARPA", help="a larger one that takes its place in the lattices, and "
                        "so in what is made of them (kaldi-lattice: a G.carpa, as utils/build_const_arpa_lm.sh writes "
                        "it)")
    parser.add_argument("--lm-scale", type=float, metavar="S", help="weight of the language model there, "
                        "of --new-lm or else of --old-lm")
    tell_defaults(parser, Request)
    parser.add_argument("--sweep", metavar="TEXT", help="reference words: try all scales and penalties, write "
                        "sweep.json, decode at the best")
    parser.add_argument("--sweep-only", action="store_true", help="with --sweep: write sweep.json and decode nothing")
    parser.add_argument("--pooled", metavar="JSON", help="with --sweep and --jobs-file: one best setting for all jobs, "
                        "from their errors together, written here")
    add_option_arguments(parser.add_argument_group("settings"))


def run(args) -> int | None:
    from essence_kd.decode.decoder import hand_over

    if args.nj < 1:
        raise UserError(f"--nj is {args.nj}, but must be at least 1")
    args.decoder, status = hand_over(args.decoder, lambda name: _command_line(args, name))
    if status is None:
        _decode(args)
    return status


def _command_line(args, decoder: str) -> list[str]:
    """The arguments of the essence command that parse to ``args``, with this decoder."""
    positional = [args.graph] + ([args.scores] if args.scores else []) + ([args.out_dir] if args.out_dir else [])
    options = {name: value for name, value in vars(args).items() if name not in ("graph", "scores", "out_dir")}
    options["decoder"] = decoder
    flags = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
             for name, value in options.items() if value is not None and value is not False]
    return ["decode", *flags, "--", *positional]


def _decode(args) -> None:
    from essence_kd.decode.decoder import Request
    from essence_kd.decode.options import decode_options
    from essence_kd.decode.runner import open_decoder
    from essence_kd.io.options import given
    from essence_kd.io.text import read_words

    jobs, request = _read_jobs(args), Request(**given(args, Request))
    if args.sweep is None and args.pooled:
        raise UserError("--pooled belongs to --sweep")
    if args.sweep is None and args.sweep_only:
        raise UserError("--sweep-only belongs to --sweep")
    if args.sweep and any(job.scale_from for job in jobs):
        raise UserError("--sweep looks for the best scale itself: leave out --scale-from")
    if args.sweep and (request.n_best or request.lattices or request.old_lm):
        raise UserError("--n-best, --lattices and --old-lm do not go with --sweep; decode again with --scale-from")
    rescored = request.new_lm is not None or request.lm_scale != 1
    if rescored != (request.old_lm is not None):
        raise UserError("--old-lm and --new-lm belong together, or --old-lm and --lm-scale")
    if not request.lm_scale > 0:
        raise UserError(f"--lm-scale is {request.lm_scale}, but must be greater than 0")
    if request.n_best < 0:
        raise UserError("--n-best must be at least 0")
    options = decode_options(args)
    reference = read_words(args.sweep) if args.sweep else None
    with open_decoder(args.decoder, args.graph, options, args.nj) as decoder:
        if reference is not None:
            decoder.sweep(jobs, reference, pooled=args.pooled, only=args.sweep_only)
        else:
            decoder.decode(jobs, request)


def _read_jobs(args) -> list:
    """The jobs (decoder.Job) that the arguments or the lines of --jobs-file name. Raises UserError."""
    from essence_kd.decode.decoder import Job
    from essence_kd.io.text import read_lines

    if args.jobs_file is None:
        if args.scores is None or args.out_dir is None:
            raise UserError("give SCORES-RSPECIFIER and OUT_DIR, or --jobs-file")
        return [Job(args.scores, Path(args.out_dir), _path(args.scale_from), _path(args.data))]
    if args.scores is not None or args.scale_from or args.data:
        raise UserError("with --jobs-file, scores, directories, --scale-from and --data belong in the file")
    jobs = []
    for number, line in read_lines(args.jobs_file):
        try:
            fields = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{args.jobs_file}: line {number}: {error}") from None
        if not fields:
            continue
        if not 2 <= len(fields) <= 4:
            raise UserError(f"{args.jobs_file}: line {number} has {len(fields)} fields; wanted SCORES OUT_DIR "
                            "[SWEEP_JSON|- [DATA_DIR|-]], with quotes around a field that has spaces")
        fields += ["-"] * (4 - len(fields))
        jobs.append(Job(fields[0], Path(fields[1]), _path(fields[2]), _path(fields[3])))
    if not jobs:
        raise UserError(f"{args.jobs_file}: there are no jobs in it")
    if len({os.path.realpath(j.out_dir) for j in jobs}) < len(jobs):
        raise UserError(f"{args.jobs_file}: two jobs write into the same directory")
    return jobs


def _path(name: str | None) -> Path | None:
    return None if name in (None, "-") else Path(name)
