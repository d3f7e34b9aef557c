"""Recognises audio: files of any format, standard input, or a microphone.

e.g.: essence recognize exp/mini/student_essence exp/mini/graph talk.flac
      essence recognize --form srt --out-dir subtitles OUT exp/mini/graph talks/*.mp3
      ffmpeg -i talk.mp4 -f wav - | essence recognize --form json OUT exp/mini/graph -
      arecord -q -t raw -f S16_LE -r 8000 | essence recognize --raw OUT exp/mini/graph -
      essence recognize --mic OUT exp/mini/graph

MODEL is a model directory of essence train, or a folder of essence export --format onnx, with which PyTorch need not be
there. Model and graph are loaded once for all files. A file that cannot be read is told and left out; the exit status
is then 1. With --raw and --mic an utterance is printed when it ends, as a line of text or of JSON.
"""
from __future__ import annotations

import sys
from pathlib import Path

from essence_kd.io.errors import UserError
from essence_kd.io.options import given, tell_defaults

HELP = "words of audio files, of standard input or of a microphone, with times: text, JSON, CTM, SRT, VTT"
FORMS = ("text", "json", "ctm", "srt", "vtt")


def add_arguments(parser) -> None:
    from essence_kd.decode.options import DecodeOptions
    from essence_kd.export.recognizer import RecognizeSettings

    parser.add_argument("model", metavar="MODEL", help="of essence train, or of essence export --format onnx")
    parser.add_argument("graph_dir", metavar="GRAPH_DIR", help="directory with graph.npz")
    parser.add_argument("audio", metavar="AUDIO", nargs="*", help="files; - is standard input, a file of any format")
    parser.add_argument("--raw", action="store_true", help="- is raw audio: 16 bits, one channel, at the model's rate")
    parser.add_argument("--mic", action="store_true", help="the default microphone, until Ctrl-C")
    parser.add_argument("--partial", action="store_true", help="with --raw or --mic: also tell on stderr, twice a "
                        "second, what has been understood so far")
    parser.add_argument("--form", choices=FORMS, default="text", help="of what is printed (default: %(default)s)")
    parser.add_argument("--out-dir", metavar="DIR", help="write DIR/NAME.FORM for each file instead of printing")
    parser.add_argument("--channel", type=int, metavar="N", help="of files that have several, counted from 0")
    parser.add_argument("--confidences", choices=("true", "false"), help="of words; they take a second search")
    parser.add_argument("--piece-seconds", type=float, metavar="X", help="longer audio is cut where it is quietest")
    parser.add_argument("--threads", type=int, metavar="N", help="of the network")
    parser.add_argument("--sample-rate", type=int, metavar="HZ", help="that the model was trained on, where "
                        "it does not say so itself")
    parser.add_argument("--scale-from", metavar="SWEEP_JSON", help="take scale and penalty from a sweep's best")
    parser.add_argument("--acoustic-scale", type=float, metavar="X", help="multiplies the scores")
    parser.add_argument("--word-insertion-penalty", type=float, metavar="X", help="cost a word; positive: fewer words")
    parser.add_argument("--beam", type=float, metavar="X", help="search beam")
    parser.add_argument("--output-beam", type=float, metavar="X", help="lattice beam, for confidences")
    parser.add_argument("--max-active", type=int, metavar="N", help="graph states kept a row")
    tell_defaults(parser, RecognizeSettings, DecodeOptions)


def run(args) -> int:
    from essence_kd.decode.options import DecodeOptions
    from essence_kd.export.recognizer import RecognizeSettings, Recognizer

    live = args.raw or args.mic
    if args.mic and (args.raw or args.audio):
        raise UserError("--mic: leave out files and --raw")
    if args.raw and args.audio != ["-"]:
        raise UserError("--raw: is of standard input: name - and no files")
    if not args.audio and not args.mic:
        raise UserError("no audio: name files, - for standard input, or --mic")
    if args.audio.count("-") > 1:
        raise UserError("- is standard input, which can be read once")
    if live and (args.form not in ("text", "json") or args.out_dir):
        raise UserError("--raw and --mic print text or json, utterance by utterance: leave out --out-dir")
    if args.form in ("srt", "vtt") and len(args.audio) > 1 and not args.out_dir:
        raise UserError(f"--form {args.form}: subtitles of several files need --out-dir")
    if args.channel is not None and args.channel < 0:
        raise UserError(f"--channel is {args.channel}, but channels are counted from 0")
    options = given(args, DecodeOptions)
    if args.scale_from:
        from essence_kd.decode.sweeps import read_best

        options = {**read_best(args.scale_from), **options}
    recognizer = Recognizer(args.model, args.graph_dir, RecognizeSettings(**given(args, RecognizeSettings)), **options)
    if args.acoustic_scale is None and args.scale_from is None and not recognizer.network.options:
        from essence_kd.export.recognizer import tell

        tell(f"acoustic scale {recognizer.decoder.options.acoustic_scale:g}; --scale-from names a sweep's")
    return _live(recognizer, args) if live else _files(recognizer, args)


def _files(recognizer, args) -> int:
    from essence_kd.export.recognizer import one_channel, tell
    from essence_kd.export.transcripts import FORMS as WRITERS
    from essence_kd.io.provenance import write_text
    from essence_kd.io.wave import read_audio, read_bytes

    out, failed = Path(args.out_dir) if args.out_dir else None, 0
    names = ["stdin" if name == "-" else Path(name).stem for name in args.audio]
    if out is not None:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"--out-dir: two files would be {out / twice[0]}.{args.form}: recognise them one by one")
        out.mkdir(parents=True, exist_ok=True)
    for name, stem in zip(args.audio, names):
        try:
            rate, samples = read_bytes(sys.stdin.buffer.read(), "standard input") if name == "-" else read_audio(name)
            words = recognizer.recognize(one_channel(samples, args.channel, name), rate, name, tell)
        except UserError as error:
            tell(str(error))
            failed += 1
            continue
        text = WRITERS[args.form](stem if args.form in ("text", "ctm") else name, words, len(samples) / rate)
        if out is None:
            print(text, end="", flush=True)
        else:
            write_text(out / f"{stem}.{args.form}", text)
    if len(args.audio) > 1 or failed:
        tell(f"{len(args.audio) - failed} of {len(args.audio)} recognised")
    return 1 if failed else 0


def _live(recognizer, args) -> int:
    from dataclasses import replace

    from essence_kd.export.live import BLOCK_MS, Endpointer, blocks_of_microphone, blocks_of_pipe
    from essence_kd.export.recognizer import tell
    from essence_kd.export.transcripts import FORMS as WRITERS

    rate, ends = recognizer.rate, Endpointer(recognizer.rate, longest=recognizer.settings.piece_seconds)
    blocks = blocks_of_microphone(rate, ends.block) if args.mic else blocks_of_pipe(sys.stdin.buffer, ends.block)

    def say(utterance) -> None:
        if utterance is None:
            return
        first, samples = utterance
        begin = first / rate
        words = [replace(word, start=round(word.start + begin, 3), end=round(word.end + begin, 3))
                 for word in recognizer.recognize(samples, rate, f"audio from {begin:.1f} s on", tell)]
        if words:
            print(WRITERS[args.form](f"{begin:.1f}", words, len(samples) / rate), end="", flush=True)

    began, partial = -1, None  # of the utterance that is being spoken
    try:
        for number, block in enumerate(blocks):
            say(ends.add(block))
            if args.partial and number % (500 // BLOCK_MS) == 0 and ends.so_far is not None:
                if ends.first != began:
                    began, partial = ends.first, recognizer.begin()
                print("...", *partial.words(ends.so_far), file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        if not args.mic:
            raise
    say(ends.end())
    return 0
