"""Decode scores by a compiled Kaldi: latgen-faster-mapped on HCLG.fst, best paths by Kaldi's lattice tools.

  essence decode-kaldi exp/mini_kaldi/graph scp:scores.scp exp/mini_kaldi/baseline/decode_eval
  essence decode-kaldi --sweep data/dev/text exp/mini_kaldi/graph ark:dev.ark exp/mini_kaldi/baseline/sweep
  essence decode-kaldi --jobs-file jobs.txt exp/mini_kaldi/graph
GRAPH_DIR, the jobs file and what is written are those of 'essence decode', with lat.gz (lattices) and log/ beside them;
GRAPH_DIR has HCLG.fst, final.mdl and phones/word_boundary.int, too. SCORES may be 'lat:gunzip -c DIR/lat.*.gz |', lattices
that Kaldi's scripts made of the data directory's utterances: only their best paths are taken then.
"""
from __future__ import annotations

HELP = "words from scores or lattices by a compiled Kaldi (latgen-faster-mapped)"


def add_arguments(parser) -> None:
    parser.add_argument("graph", metavar="GRAPH_DIR")
    parser.add_argument("scores", metavar="SCORES", nargs="?", help="rspecifier of matrices, or lat:LATTICES")
    parser.add_argument("out_dir", metavar="OUT_DIR", nargs="?")
    parser.add_argument("--jobs-file", metavar="FILE", help="several sets: SCORES OUT_DIR [SWEEP_JSON|- [DATA_DIR|-]] a line")
    parser.add_argument("--config", metavar="YAML", help="settings, e.g. conf/decode.yaml; options here win")
    parser.add_argument("--acoustic-scale", type=float, help="multiplies the scores (default 0.4)")
    parser.add_argument("--word-insertion-penalty", type=float, help="cost a word; positive: fewer words (default 0)")
    parser.add_argument("--scale-from", metavar="SWEEP_JSON", help="take scale and penalty from a sweep's best")
    parser.add_argument("--data", metavar="DATA_DIR", help="write hyp.ctm in times and channels of its recordings")
    parser.add_argument("--old-lm", metavar="G.fst", help="the grammar that is in the graph, and")
    parser.add_argument("--new-lm", metavar="G.carpa", help="the larger n-gram that takes its place in the lattices, as "
                        "utils/build_const_arpa_lm.sh writes it")
    parser.add_argument("--sweep", metavar="TEXT", help="reference words: try all scales and penalties, write sweep.json, "
                        "decode at the best")
    parser.add_argument("--sweep-scales", metavar="S,S,...", help="acoustic scales of a sweep")


def run(args) -> None:
    from essence_kd.cli.decode import numbers_of, read_jobs
    from essence_kd.decode.kaldi_lattice import KaldiLatticeDecoder
    from essence_kd.decode.options import DecodeOptions
    from essence_kd.decode.runner import Job
    from essence_kd.io.errors import UserError
    from essence_kd.io.settings import load_settings
    from essence_kd.io.text import read_words

    options = load_settings(DecodeOptions, args.config)
    for name in ("acoustic_scale", "word_insertion_penalty"):
        if getattr(args, name) is not None:
            setattr(options, name, getattr(args, name))
    if args.sweep_scales is not None:
        options.sweep_scales = numbers_of(args.sweep_scales, "--sweep-scales")
    jobs = read_jobs(args, Job)
    if (args.old_lm is None) != (args.new_lm is None):
        raise UserError("--old-lm and --new-lm belong together")
    if args.sweep and args.old_lm:
        raise UserError("--old-lm does not go with --sweep; decode again with --scale-from")
    decoder = KaldiLatticeDecoder(args.graph, options, (args.old_lm, args.new_lm) if args.old_lm else None)
    if args.sweep:
        decoder.sweep(jobs, read_words(args.sweep))
    else:
        decoder.decode(jobs)
