"""Prints values of a JSON or YAML file, for shell scripts.

e.g.: essence get exp/mini/plan.json seed 'sets[role=test].name'
      essence get --fields name,model,seed exp/mini/plan.json 'systems[role=teacher|twin]'
      essence get --words exp/mini/plan.json exp 'sets[role=test].name'

A KEY is names and numbers with dots between; [FIELD=VALUE|VALUE] after a list takes the items whose FIELD is one of
these. A list is printed with one item per line; true, false and numbers as JSON has them, null as nothing, groups as
JSON.
"""
from __future__ import annotations

HELP = "values of a JSON or YAML file, for shell scripts"


def add_arguments(parser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--fields", metavar="NAME,..", help="of each item of a list, these values in a line, with tabs "
                                                         "between; '-' for null, lists with blanks between")
    how.add_argument("--words", action="store_true", help="a line for each KEY: a list with blanks between")
    parser.add_argument("--default", metavar="TEXT", help="printed for a value that the file does not have")
    parser.add_argument("--plan", action="store_true", help="FILE is a plan.json: refuse one that makes no sense")
    parser.add_argument("file", metavar="FILE", help="a name that ends in .yaml is YAML, any other JSON")
    parser.add_argument("keys", metavar="KEY", nargs="+")


def run(args) -> None:
    from essence_kd.io.errors import UserError
    from essence_kd.io.lookup import as_text, look_up, read_values

    if args.plan:
        from pathlib import Path

        from essence_kd.plan.plan import read_plan

        read_plan(Path(args.file))
    values = read_values(args.file)

    def found_at(key):
        try:
            return look_up(values, key, args.file)
        except UserError:
            if args.default is None:
                raise
            return args.default

    for key in args.keys:
        found = found_at(key)
        if not args.fields:
            for value in found if isinstance(found, list) and not args.words else [found]:
                print(as_text(value))
            continue
        if not isinstance(found, list):
            raise UserError(f"{args.file}: {key} is no list, which --fields is for")
        for number, item in enumerate(found):
            row = [look_up(item, name, f"{args.file}: {key}[{number}]") for name in args.fields.split(",")]
            print("\t".join("-" if value in (None, "", []) else as_text(value) for value in row))
