"""Copies posteriors between Kaldi's binary form, its text form, and the compact form.

  essence copy-post scp:post.scp ark,t:-                          # look at an archive
  essence copy-post scp:post.scp compact:ark,scp:small.ark,small.scp
  essence copy-post ark:small.ark ark,scp:post.ark,post.scp       # back to what Kaldi reads

The input's form is recognised. The output is Kaldi's unless the wspecifier starts with compact:. A sidecar
(essence.json) beside the input is copied beside the output. docs/formats.md has the precision of the compact form.
"""
from __future__ import annotations

import json
import os
import sys

HELP = "copy posteriors between Kaldi's binary and text forms and the compact form"


def add_arguments(parser) -> None:
    parser.add_argument("rspecifier", metavar="RSPECIFIER", help="posteriors: binary, text or compact")
    parser.add_argument("wspecifier", metavar="WSPECIFIER",
                        help="ark:, ark,t:, ark,scp:A,S, or one of them (not text) after compact:")
    parser.add_argument("--num-pdfs", type=int, default=None, metavar="N",
                        help="number of pdfs; refuses larger pdf-ids and fixes the widths of a compact archive "
                             "(default: as in the input's sidecar)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N",
                        help="write every frame N times: targets of 30 ms (N = 3) at the rate of 10 ms features, where "
                             "nnet3-get-egs looks for them (default: 1)")
    parser.add_argument("--information", type=int, default=0, metavar="K",
                        help="also count, for frames of up to K entries, how many bits an entry needs, and print it as "
                             "JSON on stderr (default: 0, no)")


def run(args) -> None:
    from essence_kd.io.compact import Information
    from essence_kd.io.errors import UserError
    from essence_kd.io.posterior import PosteriorWriter, read_posteriors
    from essence_kd.io.provenance import read_sidecar, sidecar_path, write_sidecar

    source, target = sidecar_path(args.rspecifier), sidecar_path(args.wspecifier)
    fields = read_sidecar(source) if source and os.path.exists(source) else None
    num_pdfs = args.num_pdfs if args.num_pdfs is not None else (fields or {}).get("num_pdfs")
    if args.repeat < 1:
        raise UserError(f"--repeat {args.repeat}: must be at least 1")
    if args.information < 0:
        raise UserError(f"--information {args.information}: must be at least 0")
    if args.information and num_pdfs is None:
        raise UserError("--information needs the number of pdfs: give --num-pdfs")
    information = Information(num_pdfs, args.information) if args.information else None
    frames = entries = 0
    with PosteriorWriter(args.wspecifier, num_pdfs=num_pdfs) as writer:
        for utt, post in read_posteriors(args.rspecifier):
            if args.repeat > 1:
                post = post.repeated(args.repeat)
            writer.write(utt, post)
            frames += post.num_frames
            entries += post.num_entries
            if information is not None:
                information.add(*post.padded(args.information), post.counts())
        if not writer.count:
            raise UserError(f"{args.rspecifier}: holds no utterance")
    if fields is not None and target and os.path.abspath(target) != os.path.abspath(source):
        if fields.get("num_utts") not in (None, writer.count):
            fields["mean_mass"] = None  # of a part it is not known
        fields.update(num_utts=writer.count, num_frames=frames, num_entries=entries)
        if fields.get("frame_shift_ms"):
            fields["frame_shift_ms"] /= args.repeat
        write_sidecar(target, {**fields, "form": "compact" if writer.compact else "kaldi"})
    print(f"copy-post: {writer.count} utterances, {frames} frames, {entries} entries", file=sys.stderr)
    if information is not None:
        print(json.dumps(information.report()), file=sys.stderr)
