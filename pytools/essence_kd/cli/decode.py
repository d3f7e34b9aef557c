"""Decode scores (log-likelihoods, a row an output frame) with a graph made by 'essence make-graph'.

  essence decode exp/mini/graph scp:scores.scp exp/mini/baseline/decode_eval
  essence decode --sweep data/mini/dev/text exp/mini/graph ark:dev.ark exp/mini/baseline/decode_dev
  essence decode --scale-from exp/mini/baseline/decode_dev/sweep.json exp/mini/graph ark:eval.ark OUT_DIR
  essence decode --nj 2 --jobs-file jobs.txt exp/mini/graph
A line of jobs.txt: SCORES OUT_DIR [SWEEP_JSON|- [DATA_DIR|-]]; the graph is loaded once for all of them.

OUT_DIR gets hyp.txt (every utterance of the scores), hyp.ctm and decode.json. A path costs the graph's weights plus
the word insertion penalty a word, less acoustic scale x score. k2 is taken from this Python, from $ESSENCE_K2_PYTHON,
or from .venv-k2 of the work directory or the checkout.
"""
from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from essence_kd.io.errors import UserError

HELP = "words from scores: k2 or kaldi-decoder, with word times, n-best, lattices, and sweeps of scales"

_NO_K2 = 97  # exit status of a Python that cannot import k2
# k2's own Python starts here: says why k2 cannot be used there, or runs the same verb.
_BOOT = f"""
import signal, sys
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    import numpy, yaml, torch, k2
    torch.zeros(1)
except BaseException as error:
    open(sys.argv[1], "w").write(" ".join(f"{{type(error).__name__}}: {{error}}".split())[:300])
    sys.exit({_NO_K2})
from essence_kd.cli.main import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
"""


def add_arguments(parser) -> None:
    parser.add_argument("graph", metavar="GRAPH_DIR", help="directory with graph.npz")
    parser.add_argument("scores", metavar="SCORES-RSPECIFIER", nargs="?",
                        help="matrices: a row a frame, a column a pdf")
    parser.add_argument("out_dir", metavar="OUT_DIR", nargs="?")
    parser.add_argument("--jobs-file", metavar="FILE", help="several sets, one a line (see above)")
    parser.add_argument("--decoder", choices=("k2", "kaldi", "auto"), default="auto",
                        help="auto: k2 where it can be had, else kaldi with a notice (default)")
    parser.add_argument("--config", metavar="YAML", help="settings, e.g. conf/decode.yaml; options here win")
    parser.add_argument("--acoustic-scale", type=float, help="multiplies the scores (default 0.4)")
    parser.add_argument("--word-insertion-penalty", type=float, help="cost a word; positive: fewer words (default 0)")
    parser.add_argument("--scale-from", metavar="SWEEP_JSON", help="take scale and penalty from a sweep's best")
    parser.add_argument("--data", metavar="DATA_DIR", help="write hyp.ctm in times and channels of the recordings that "
                        "segments and reco2file_and_channel name (default: every utterance is a recording)")
    parser.add_argument("--beam", type=float, help="search beam (default 10)")
    parser.add_argument("--output-beam", type=float, help="lattice beam (default 5)")
    parser.add_argument("--max-active", type=int, help="graph states a frame (default 7000)")
    parser.add_argument("--min-active", type=int, help="graph states a frame (default 30)")
    parser.add_argument("--frame-shift-ms", type=float, help="between two rows of the scores (default 0: what their "
                        "sidecar says, else what the graph expects)")
    parser.add_argument("--repeat-rows", type=int, metavar="N", help="rows that the graph gets for one of the scores, "
                        "each with an N-th of it (default 0: as many as the frame shifts of scores and graph tell)")
    parser.add_argument("--batch-rows", type=int, help="rows k2 decodes at once (default 0: what suits the device)")
    parser.add_argument("--piece-seconds", type=float, metavar="S", help="decode a longer utterance in pieces, cut where "
                        "silence is surest, so that memory is bounded; 0: never (default 600; never with --lattices)")
    parser.add_argument("--active-rows", type=int, metavar="N", help="count the states that k2's search holds active at "
                        "N rows of a set at most; 0: never (default 64)")
    parser.add_argument("--nj", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--n-best", type=int, default=0, metavar="N",
                        help="also write nbest.txt and nbest.cost: the N best different word sequences")
    parser.add_argument("--lattices", action="store_true", help="also write lat.txt, lattices in Kaldi's text form")
    parser.add_argument("--old-lm", metavar="ARPA", help="the n-gram model that is in the graph")
    parser.add_argument("--new-lm", metavar="ARPA", help="a larger one that takes its place in the choice among the "
                        "--rescore-n-best word sequences of each utterance")
    parser.add_argument("--lm-scale", type=float, default=1.0, metavar="S", help="weight of the language model in that "
                        "choice, of --new-lm or else of --old-lm (default 1)")
    parser.add_argument("--rescore-n-best", type=int, default=100, metavar="N", help="(default 100)")
    parser.add_argument("--sweep", metavar="TEXT", help="reference words: try all scales and penalties, write "
                        "sweep.json, decode at the best")
    parser.add_argument("--sweep-scales", metavar="S,S,...", help="acoustic scales of a sweep")
    parser.add_argument("--sweep-penalties", metavar="P,P,...", help="word insertion penalties of a sweep")
    parser.add_argument("--pooled", metavar="JSON", help="with --sweep and --jobs-file: one best setting for all jobs, "
                        "from their errors together, written here")


def run(args) -> int | None:
    if args.nj < 1:
        raise UserError(f"--nj is {args.nj}, but must be at least 1")
    backend = args.decoder
    if backend != "kaldi" and not _k2_here():
        status, reason = _run_in_k2_python(args)
        if status is not None:
            return status
        if backend == "k2":
            raise UserError(f"{reason}; decode with --decoder kaldi meanwhile")
        print(f"essence decode: {reason}: kaldi-decoder decodes instead", file=sys.stderr)
        backend = "kaldi"
    elif backend == "auto":
        backend = "k2"
    return _decode(args, backend)


def _k2_here() -> bool:
    if importlib.util.find_spec("k2") is None:
        return False
    try:
        import k2  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def _k2_python() -> tuple[str | None, str]:
    """The Python to look for k2 in, and the fix to tell when it fails."""
    def anew(venv: Path) -> str:
        return f"make it anew: rm -r {venv}; local/setup_env.sh"

    named = os.environ.get("ESSENCE_K2_PYTHON")
    if named:
        venv = Path(named).parents[1] if len(Path(named).parts) > 2 else Path(named)
        made_here = venv.name == ".venv-k2"  # path.sh names it
        return named, anew(venv) if made_here else "set ESSENCE_K2_PYTHON to a Python that has k2"
    root = Path(__file__).resolve().parents[3]
    for place in (os.environ.get("WORK_DIR"), root):
        if place and (Path(place) / ".venv-k2" / "bin").is_dir():
            venv = Path(place) / ".venv-k2"
            return str(venv / "bin" / "python"), anew(venv)
    return None, ""


def _run_in_k2_python(args) -> tuple[int | None, str]:
    """Run this very command in the Python that has k2: its exit status, or None and why k2 cannot be used."""
    python, fix = _k2_python()
    if python is None:
        return None, ("there is no k2: neither in this Python, nor $ESSENCE_K2_PYTHON, nor .venv-k2 "
                      "(local/setup_env.sh sets it up)")
    environment = dict(os.environ)
    package = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [environment.get("PYTHONPATH")])])
    with tempfile.NamedTemporaryFile("r", prefix="essence-k2-") as reason:
        try:
            process = subprocess.Popen([python, "-c", _BOOT, reason.name, *_command_line(args)], env=environment)
        except OSError as error:
            return None, f"k2's Python {python} cannot be started ({error.strerror}); {fix}"
        try:
            status = process.wait()
        except BaseException:
            process.terminate()  # it ends the processes that it has started; killed, it would leave them behind
            process.wait()
            raise
        why = reason.read()
    if status == _NO_K2:
        return None, f"k2's Python {python} has no usable k2 ({why}); {fix}"
    if status < 0:
        raise UserError(f"k2's process was ended by signal {-status}, perhaps for want of memory; try a smaller "
                        "--batch-rows or --max-active, or --decoder kaldi")
    return status, ""


def _command_line(args) -> list[str]:
    """The arguments of the essence command that parse to ``args``."""
    positional = [args.graph] + ([args.scores] if args.scores else []) + ([args.out_dir] if args.out_dir else [])
    options = {name: value for name, value in vars(args).items() if name not in ("graph", "scores", "out_dir")}
    flags = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
             for name, value in options.items() if value is not None and value is not False]
    return ["decode", *flags, "--", *positional]


def _decode(args, backend: str) -> None:
    from essence_kd.decode.options import DecodeOptions
    from essence_kd.decode.rescoring import Rescorer
    from essence_kd.decode.runner import Job, Request, Runner
    from essence_kd.io.settings import load_settings
    from essence_kd.io.text import read_words

    jobs = read_jobs(args, Job)
    options = load_settings(DecodeOptions, args.config)
    for name in ("acoustic_scale", "word_insertion_penalty", "beam", "output_beam", "max_active", "min_active",
                 "frame_shift_ms", "repeat_rows", "batch_rows", "piece_seconds", "active_rows"):
        if getattr(args, name) is not None:
            setattr(options, name, getattr(args, name))
    for name in ("sweep_scales", "sweep_penalties"):
        if getattr(args, name) is not None:
            setattr(options, name, numbers_of(getattr(args, name), f"--{name.replace('_', '-')}"))
    if args.sweep is None and args.pooled:
        raise UserError("--pooled belongs to --sweep")
    if args.sweep and any(job.scale_from for job in jobs):
        raise UserError("--sweep looks for the best scale itself: leave out --scale-from")
    if args.sweep and (args.n_best or args.lattices or args.old_lm):
        raise UserError("--n-best, --lattices and --old-lm do not go with --sweep; decode again with --scale-from")
    rescored = args.new_lm is not None or args.lm_scale != 1
    if rescored != (args.old_lm is not None):
        raise UserError("--old-lm and --new-lm belong together, or --old-lm and --lm-scale")
    if not args.lm_scale > 0:
        raise UserError(f"--lm-scale is {args.lm_scale}, but must be greater than 0")
    if args.n_best < 0 or args.rescore_n_best < 1:
        raise UserError("--n-best must be at least 0 and --rescore-n-best at least 1")
    options.check()
    reference = read_words(args.sweep) if args.sweep else None
    with Runner(args.graph, backend, options, nj=args.nj) as runner:
        if reference is not None:
            runner.sweep(jobs, reference, pooled=args.pooled)
        else:
            rescorer = Rescorer(args.old_lm, args.new_lm, args.lm_scale) if rescored else None
            runner.decode(jobs, Request(n_best=args.n_best, lattices=args.lattices, rescorer=rescorer,
                                        rescore_n_best=args.rescore_n_best))


def read_jobs(args, job) -> list:
    """The jobs (``job``: runner.Job) that the arguments or the lines of --jobs-file name. Raises UserError."""
    from essence_kd.io.text import read_lines

    if args.jobs_file is None:
        if args.scores is None or args.out_dir is None:
            raise UserError("give SCORES-RSPECIFIER and OUT_DIR, or --jobs-file")
        return [job(args.scores, Path(args.out_dir), _path(args.scale_from), _path(args.data))]
    if args.scores is not None or args.scale_from or args.data:
        raise UserError("with --jobs-file, scores, directories, --scale-from and --data stand in the file")
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
        jobs.append(job(fields[0], Path(fields[1]), _path(fields[2]), _path(fields[3])))
    if not jobs:
        raise UserError(f"{args.jobs_file}: there are no jobs in it")
    if len({os.path.realpath(j.out_dir) for j in jobs}) < len(jobs):
        raise UserError(f"{args.jobs_file}: two jobs write into the same directory")
    return jobs


def _path(name: str | None) -> Path | None:
    return None if name in (None, "-") else Path(name)


def numbers_of(text: str, option: str) -> list[float]:
    """Numbers with commas between; a UserError names the option."""
    try:
        return [float(field) for field in text.split(",")]
    except ValueError:
        raise UserError(f"{option} is '{text}', but must be numbers with commas between") from None
