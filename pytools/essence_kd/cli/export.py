"""Writes a trained model, with its priors, front end and scales, for other programs to recognise with.

e.g.: essence export --format onnx exp/mini/student_essence OUT
      essence export --format sherpa --scale-from exp/mini/scales/networks.json exp/mini/student_essence \\
        exp/mini/graph OUT

OUT is a folder: the files of the format, README.md (what they are, how they are used), export.json (the same for
programs), and test_wavs/. It is there only when what was written answers as PyTorch does.
"""
from __future__ import annotations

from essence_kd.io.options import given, tell_defaults

HELP = "write a trained model for other programs: ONNX, sherpa-onnx, ..."


def add_arguments(parser) -> None:
    from essence_kd.export.format import FORMATS, ExportSettings

    parser.add_argument("--format", required=True, metavar="NAME",
                        help=f"{', '.join(FORMATS.names(plugins=False))}, or one of a plugin (ESSENCE_PLUGINS)")
    parser.add_argument("--scale-from", metavar="SWEEP_JSON", help="take scale and penalty from a sweep's best")
    parser.add_argument("--acoustic-scale", type=float, metavar="X", help="multiplies the scores")
    parser.add_argument("--word-insertion-penalty", type=float, metavar="X", help="cost per word, in the graph")
    parser.add_argument("--beam", type=float, metavar="X", help="search beam that the export is set for")
    parser.add_argument("--max-active", type=int, metavar="N", help="graph states kept per row")
    parser.add_argument("--prior-scale", type=float, metavar="S", help="of the log prior")
    parser.add_argument("--prior-floor", type=float, metavar="P", help="least prior of a pdf")
    parser.add_argument("--sample-rate", type=int, metavar="HZ", help="of the audio that the model was trained on, "
                        "where model.yaml does not say it")
    parser.add_argument("--int8", choices=("dynamic", "static"), help="8-bit weights: a quarter of the bytes")
    parser.add_argument("--calibrate", metavar="DATA_DIR", help="whose feats.scp --int8 static looks at: some training "
                        "data")
    parser.add_argument("--test-data", metavar="DATA_DIR", help="whose first utterances become test_wavs/")
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="of essence train")
    parser.add_argument("graph_dir", metavar="GRAPH_DIR", nargs="?", help="directory with graph.npz, where the format "
                        "holds one")
    parser.add_argument("out", metavar="OUT", help="folder; an earlier export there is replaced")
    tell_defaults(parser, ExportSettings)


def run(args) -> None:
    from essence_kd.export.exporter import export
    from essence_kd.export.format import ExportSettings

    settings = given(args, ExportSettings)
    if args.scale_from:
        from essence_kd.decode.sweeps import read_best

        settings = {**read_best(args.scale_from), **settings}
    print(export(args.format, args.model_dir, args.out, args.graph_dir, ExportSettings(**settings)))
