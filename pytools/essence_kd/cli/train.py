"""Train an acoustic model on alignments, with or without soft targets. Running it again goes on after the last
checkpoint. Where torchrun starts several processes (torchrun --nproc-per-node 4 -m essence_kd train ...), they share
every batch. --set early_stopping.metric=dev_wer (with early_stopping.data and early_stopping.graph) decodes a set after
every epoch, ends when its word error rate no longer falls, and keeps the best epoch's model; dev_loss goes by the dev
loss.

e.g.: essence train --model conf/models/student_tdnn.yaml --soft exp/mini/essence_k20/post.scp --soft-weight 0.9 \\
        data/mini/train_sp_hires exp/mini/ali exp/mini/student_essence
"""
from __future__ import annotations

from essence_kd.am.settings import SOFT_KINDS, DistillSettings, TrainInputs, TrainSettings
from essence_kd.io.options import given, numbers, tell_defaults

HELP = "train an acoustic model: a teacher, a baseline or a student"


def _of_model(default) -> str:
    return f"(default: the model's, {default if isinstance(default, str) else format(default, 'g')})"


def add_arguments(parser) -> None:
    parser.add_argument("--model", metavar="YAML",
                        help="settings: a file, or a name of conf/models such as student_tdnn; "
                        "default: a small TDNN")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[],
                        help="a setting that differs, such as optim.epochs=20; may be repeated")
    parser.add_argument("--soft", metavar="SCP", help="soft targets, one row per output frame")
    parser.add_argument("--soft-kind", choices=SOFT_KINDS, help="Kaldi Posterior or matrices of probabilities")
    parser.add_argument("--soft-weight", type=float, metavar="A",
                        help=f"(1 - A) CE(hard) + A T^2 CE(soft) {_of_model(DistillSettings.soft_weight)}")
    parser.add_argument("--temperature", type=float, metavar="T",
                        help=f"of the soft loss {_of_model(DistillSettings.temperature)}")
    parser.add_argument("--mass", metavar="NAME",
                        help=f"mass rule: what a pruned target sums to {_of_model(DistillSettings.mass)}")
    parser.add_argument("--untranscribed", metavar=("DIR", "SCP"), nargs=2, action="append",
                        help="data without transcripts, and its soft targets, from which alone it is learnt; may be "
                        "repeated")
    parser.add_argument("--shares", metavar="A,B,..", type=numbers,
                        help="how much of DATA_DIR and of each --untranscribed an epoch draws, 1 being all of it once "
                        "(default: all of each)")
    parser.add_argument("--min-confidence", type=float, metavar="P",
                        help="leave out utterances without transcript whose soft target has a best probability below "
                        "this in the mean over its frames")
    parser.add_argument("--init", metavar="MODEL_DIR", help="start from this model's parameters")
    parser.add_argument("--dev-data", metavar="DIR", help="data for the dev loss (default: held out of DATA_DIR)")
    parser.add_argument("--dev-ali", metavar="DIR", help="its alignments")
    parser.add_argument("--seed", type=int, metavar="N",
                        help=f"of parameters, batches and dropout {_of_model(TrainSettings.seed)}")
    parser.add_argument("--threads", type=int, metavar="N", help=f"on a CPU {_of_model(TrainSettings.threads)}")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--tensorboard", action="store_true", help="also write scalars to MODEL_DIR/tensorboard")
    parser.add_argument("data_dir", metavar="DATA_DIR", help="data directory with feats.scp, or shards (essence shard)")
    parser.add_argument("ali_dir", metavar="ALI_DIR", help="has ali.scp, num_pdfs, priors.txt, tree.txt")
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="final.pt, model.yaml, info.json ... go there")
    tell_defaults(parser, TrainInputs)


def run(args) -> None:
    from essence_kd.am.processes import keep_freed_memory
    from essence_kd.am.trainer import train
    from essence_kd.io.resources import model_file
    from essence_kd.io.settings import load_settings

    keep_freed_memory()
    overrides = list(args.set)
    for option, key in (("soft_weight", "distill.soft_weight"), ("temperature", "distill.temperature"),
                        ("mass", "distill.mass"), ("seed", "seed"), ("threads", "threads")):
        if getattr(args, option) is not None:
            overrides.append(f"{key}={getattr(args, option)}")
    settings = load_settings(TrainSettings, args.model and model_file(args.model), overrides)
    dev_wer = None
    if settings.early_stopping.metric == "dev_wer":
        from essence_kd.score.dev_wer import DevWer

        dev_wer = DevWer(settings.early_stopping, args.device)
    train(settings, args.data_dir, args.ali_dir, args.model_dir, device=args.device, tensorboard=args.tensorboard,
          dev_wer=dev_wer, **given(args, TrainInputs))
