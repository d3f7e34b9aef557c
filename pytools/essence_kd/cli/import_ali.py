"""Takes alignments that Kaldi made: an alignment directory for train, mix-post and dump-post.

  show-transitions data/lang/phones.txt exp/tri3_ali_sp/final.mdl >transitions.txt
  essence import-ali --transitions transitions.txt data/train_sp \\
    'ark:gunzip -c exp/tri3_ali_sp/ali.*.gz | ali-to-pdf exp/tri3_ali_sp/final.mdl ark:- ark:- |' exp/ali

Every utterance of DATA is looked for; the missing ones are listed in failed.txt, and more than 5 % of them are a
failure.
"""
from __future__ import annotations

from essence_kd.hmm.kaldi_alignment import import_alignments
from essence_kd.io.options import given, tell_defaults

HELP = "take Kaldi's alignments (pdf-ids) as an alignment directory"


def add_arguments(parser) -> None:
    parser.add_argument("--transitions", required=True, metavar="FILE", help="what Kaldi's show-transitions printed")
    parser.add_argument("--frame-subsampling-factor", type=int, metavar="N", dest="factor",
                        help="alignments may have a pdf-id every N feature frames, as those of a chain model's tree; "
                             "it is repeated")
    parser.add_argument("data_dir", metavar="DATA", help="data directory with utt2spk and, if possible, utt2num_frames")
    parser.add_argument("alignments", metavar="ALI-RSPECIFIER", help="vectors of pdf-ids, one per feature frame")
    parser.add_argument("ali_dir", metavar="ALI_DIR", help="ali.ark, ali.scp, priors.txt, tree.txt ... go there")
    tell_defaults(parser, import_alignments)


def run(args) -> None:
    """Import and count."""
    total, missing = import_alignments(args.data_dir, args.alignments, args.transitions, args.ali_dir,
                                       **given(args, import_alignments))
    print(f"{args.ali_dir}: {total - missing} of {total} utterances aligned")
