"""Word error rate of a hypothesis text against a reference text, both in Kaldi's ``text`` format."""
from __future__ import annotations

import sys

HELP = "%WER of a hypothesis text against a reference text"


def add_arguments(parser) -> None:
    parser.add_argument("ref", metavar="REF_TEXT", help="reference: lines UTTERANCE WORD WORD ...")
    parser.add_argument("hyp", metavar="HYP_TEXT", help="hypothesis in the same format")
    parser.add_argument("--utt2spk", metavar="FILE", help="print a %%WER line per speaker too")
    parser.add_argument("--per-utt", metavar="FILE", help="write counts of every utterance: UTT WORDS INS DEL SUB")
    parser.add_argument("--sclite-weights", action="store_true",
                        help="insertions and deletions cost 3, substitutions 4 (sclite's), instead of Kaldi's 1, 1, 1")


def run(args) -> None:
    from essence_kd.score import wer

    result = wer.score(wer.read_text(args.ref), wer.read_text(args.hyp), sclite=args.sclite_weights,
                       ref_name=args.ref, hyp_name=args.hyp)
    total = result.total
    print(wer.wer_line(total))
    print(wer.ser_line(total))
    print(f"Scored {total.utterances} sentences, {len(result.missing)} not present in hyp.")
    if result.missing:
        shown = " ".join(result.missing[:5]) + (" ..." if len(result.missing) > 5 else "")
        print(f"essence score: {len(result.missing)} reference utterances have no hypothesis and count as deleted: "
              f"{shown}", file=sys.stderr)
    if args.utt2spk:
        for speaker, counts in result.by_speaker(wer.read_table(args.utt2spk, "utt2spk")).items():
            print(f"{wer.wer_line(counts)} {speaker}")
    if args.per_utt:
        with open(args.per_utt, "w", encoding="utf-8") as out:
            for utt, c in result.utts.items():
                out.write(f"{utt} {c.words} {c.ins} {c.dels} {c.sub}\n")
