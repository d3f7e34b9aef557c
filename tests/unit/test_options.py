"""Options whose defaults stand in functions: what is told, and what is passed on."""
import argparse
import importlib
from dataclasses import dataclass, field

import pytest

from essence_kd.cli.main import verb_parser, verbs
from essence_kd.io.options import defaults_of, given, tell_defaults

VERBS = ("gmm-train gmm-align gmm-scores make-lang make-grammar train-lm perplexity make-graph import-graph import-ali "
         "make-feats compute-cmvn perturb-data synth prepare-fsdd prepare-librispeech validate-data").split()


@dataclass
class Settings:
    rate: float = 0.5
    careful: bool = False
    grid: list = field(default_factory=lambda: [0.1, 2])


def work(path, nj: int = 3, kinds=("a", "b"), share: str = "5%", name=None):
    return path, nj, kinds, share, name


def parser_of(*functions):
    parser = argparse.ArgumentParser()
    for option in ("--nj", "--kinds", "--share", "--name", "--rate", "--careful", "--grid", "--other"):
        parser.add_argument(option, type=int if option == "--nj" else None)
    tell_defaults(parser, *functions)
    return parser


def test_only_what_was_given_is_passed_on():
    args = parser_of(work, Settings).parse_args(["--nj", "7", "--careful", "true", "--other", "x"])
    assert given(args, work) == {"nj": 7} and given(args, Settings) == {"careful": True}
    assert given(parser_of(work).parse_args([]), work) == {}
    assert given(parser_of(work).parse_args(["--careful", "false"]), Settings) == {"careful": False}
    assert defaults_of(work) == {"nj": 3, "kinds": ("a", "b"), "share": "5%", "name": None}


def test_help_tells_the_functions_defaults():
    told = " ".join(parser_of(work, Settings).format_help().split())
    for line in ("--nj NJ (default: 3)", "--kinds KINDS (default: a,b)", "--share SHARE (default: 5%)",
                 "--rate RATE (default: 0.5)", "--careful CAREFUL (default: false)", "--grid GRID (default: 0.1,2)"):
        assert line in told
    assert told.count("default:") == 6


def test_a_second_default_is_refused():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nj", type=int, default=2)
    with pytest.raises(ValueError, match="--nj: its default stands in work already"):
        tell_defaults(parser, work)


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_have_no_defaults_of_their_own(verb):
    parser = argparse.ArgumentParser()
    importlib.import_module(f"essence_kd.cli.{verb.replace('-', '_')}").add_arguments(parser)
    own = [action.dest for action in parser._actions
           if action.default not in (None, [], argparse.SUPPRESS)]
    assert not own
    parser.format_help()  # every text can be formatted


@pytest.mark.parametrize("verb", verbs())
def test_options_may_stand_anywhere_among_a_verbs_arguments(verb):
    """Before, between and after arguments, those of which there may be several too."""
    parser = verb_parser(verb, importlib.import_module(f"essence_kd.cli.{verb.replace('-', '_')}"))
    words, needed = [], []
    for action in parser._actions:
        if not action.option_strings:
            words += [f"{action.dest}{n}" for n in range({"+": 3, "*": 3}.get(action.nargs, 1))]
        elif action.required:
            needed += [action.option_strings[0], "1"]
    expected = vars(parser.parse_args([*needed, "--allow-pipes", "false", *words]))
    for place in range(len(words) + 1):
        given_words = [*needed, *words[:place], "--allow-pipes", "false", *words[place:]]
        assert vars(parser.parse_intermixed_args(given_words)) == expected
    if words:
        assert vars(parser.parse_intermixed_args([*needed, "--allow-pipes=false", "--", *words])) == expected
