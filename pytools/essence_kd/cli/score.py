"""Word error rate of a hypothesis against a reference.

Two Kaldi text files are counted as Kaldi's compute-wer counts them (mode "all": a reference utterance without a
hypothesis is deleted). With --glm the rules of the Hub5 evaluations apply: mapping rules, case, alternatives { a / b },
optional words (word), fragments. An STM reference (a file called stm or *.stm) and a CTM hypothesis (ctm or *.ctm) are
scored by time, with sclite where it is installed and with the same counts by our own aligner where it is not.
"""
from __future__ import annotations

import sys
from pathlib import Path

HELP = "%WER of a hypothesis against a reference"


def add_arguments(parser) -> None:
    parser.add_argument("ref", metavar="REF", help="reference: Kaldi text (UTTERANCE WORD WORD ...), or an STM file")
    parser.add_argument("hyp", metavar="HYP", help="hypothesis: Kaldi text, or a CTM file")
    parser.add_argument("--glm", metavar="FILE",
                        help="mapping rules in NIST's format; 'default' takes ours: hesitations (uh, um, ...) are one "
                             "token, optional in the reference")
    parser.add_argument("--drop-noise", action="store_true",
                        help="take noises, <unk>, hesitations and fragments out of the hypothesis and spell acronyms "
                             "(i._b._m.), as the swbd recipe does")
    parser.add_argument("--scorer", choices=("auto", "sclite", "native"), default="auto",
                        help="for STM and CTM: sclite, our own aligner, or sclite where it is installed (%(default)s)")
    parser.add_argument("--per-speaker", action="store_true", help="a %%WER line per speaker of the STM too")
    parser.add_argument("--utt2spk", metavar="FILE", help="a %%WER line per speaker too, speakers from FILE (texts)")
    parser.add_argument("--against", metavar="HYP2",
                        help="texts: is the difference to another system's hypothesis more than "
                        "chance? Paired bootstrap (speakers of --utt2spk, or utterances) and NIST's matched-pair test")
    parser.add_argument("--per-utt", metavar="FILE", help="write the counts of every utterance: UTT WORDS INS DEL SUB")
    parser.add_argument("--sclite-weights", action="store_true",
                        help="texts without --glm: insertions and deletions cost 3, substitutions 4, not 1, 1, 1")


def _write_counts(path: str, rows) -> None:
    from essence_kd.io.provenance import write_text

    write_text(path, "".join(f"{name} {c.words} {c.ins} {c.dels} {c.sub}\n" for name, c in rows))


def _score_times(args, glm) -> None:
    from essence_kd.score import hub5, wer

    scores, scorer = hub5.score_hub5(args.ref, args.hyp, glm=glm, scorer=args.scorer, drop_noise=args.drop_noise)
    total = sum((s.counts for s in scores), wer.Counts())
    print(f"{wer.wer_line(total)}\n{wer.ser_line(total)}")
    print(f"Scored {total.utterances} segments with {'sclite' if scorer == 'sclite' else 'the native aligner'}.")
    groups = dict(hub5.halves(scores))
    if args.per_speaker:
        for s in scores:
            groups[s.segment.speaker] = groups.get(s.segment.speaker, wer.Counts()) + s.counts
    for name, counts in groups.items():
        print(f"{wer.wer_line(counts)} {name}")
    if args.per_utt:
        _write_counts(args.per_utt, ((f"{s.segment.recording}-{s.segment.channel}-{s.segment.start:.2f}", s.counts)
                                     for s in scores))


def _score_texts(args, glm) -> None:
    from essence_kd.io.text import read_words
    from essence_kd.io.words import tell_unseen
    from essence_kd.score import hub5, wer

    names = {"ref_name": args.ref, "hyp_name": args.hyp}
    refs, hyps = read_words(args.ref), read_words(args.hyp)
    for name, texts in ((args.ref, refs), (args.hyp, hyps)):
        tell_unseen(texts.items(), name)
    if args.glm is not None or args.drop_noise:
        lines = ({utt: " ".join(words) for utt, words in texts.items()} for texts in (refs, hyps))
        result = hub5.score_text(*lines, glm=glm, drop_noise=args.drop_noise, **names)
    else:
        result = wer.score(refs, hyps, sclite=args.sclite_weights, **names)
    total = result.total
    print(f"{wer.wer_line(total)}\n{wer.ser_line(total)}")
    print(f"Scored {total.utterances} sentences, {len(result.missing)} not present in hyp.")
    if result.missing:
        shown = " ".join(result.missing[:5]) + (" ..." if len(result.missing) > 5 else "")
        print(f"essence score: {len(result.missing)} reference utterances have no hypothesis and count as deleted: "
              f"{shown}", file=sys.stderr)
    if args.utt2spk:
        for speaker, counts in result.by_speaker(_speakers(args.utt2spk)).items():
            print(f"{wer.wer_line(counts)} {speaker}")
    if args.against:
        _compare(args, result)
    if args.per_utt:
        _write_counts(args.per_utt, result.utts.items())


def _speakers(path: str) -> dict[str, str]:
    from essence_kd.io.errors import UserError
    from essence_kd.io.text import read_map, split

    speakers = read_map(path)
    for utt, speaker in speakers.items():
        if len(split(speaker)) != 1:
            raise UserError(f"{path}: utterance '{utt}' has '{speaker}' after it, where one speaker is expected")
    return speakers


def _compare(args, result) -> None:
    from essence_kd.io.text import read_words
    from essence_kd.score import wer
    from essence_kd.score.results import compare_scores, p_text

    other = wer.score(read_words(args.ref), read_words(args.against), sclite=args.sclite_weights, ref_name=args.ref,
                      hyp_name=args.against)
    found, matched, unit = compare_scores(result, other, _speakers(args.utt2spk) if args.utt2spk else None)
    print(f"{wer.wer_line(other.total)} {args.against}")
    print(f"Difference {found.diff:+.2f} points, "
          f"95 % interval {found.low:+.2f} to {found.high:+.2f}, p {p_text(found.p)} "
          f"(paired bootstrap over {unit}), p {p_text(matched.p)} (matched pairs, {matched.segments} segments)")


def run(args) -> None:
    from essence_kd.io.errors import UserError

    glm = None if args.glm in (None, "default") else args.glm
    kinds = tuple(Path(name).suffix == f".{kind}" or Path(name).name == kind
                  for name, kind in ((args.ref, "stm"), (args.hyp, "ctm")))
    if args.against and (args.glm is not None or args.drop_noise or any(kinds)):
        raise UserError("--against compares texts as they are: leave out --glm, --drop-noise, STM and CTM")
    if kinds == (True, True):
        _score_times(args, glm)
    elif any(kinds):
        raise UserError(f"{args.ref}, {args.hyp}: an STM reference goes with a CTM hypothesis, a text with a text")
    else:
        _score_texts(args, glm)
