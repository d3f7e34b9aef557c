"""Entry point of the ``essence`` command: finds the verb, parses, calls it, and turns errors into messages."""
from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import signal
import sys
from types import ModuleType

from essence_kd import __version__
from essence_kd.io.errors import UserError
from essence_kd.io.pipes import ALLOW_PIPES, pipes_allowed
from essence_kd.io.text import VisibleStream, visible

PRINT_DATA = ("get", "plan")  # verbs whose standard output is for scripts, to the byte


def verbs() -> dict[str, str]:
    """Every verb and the file that holds it."""
    here = os.path.dirname(os.path.abspath(__file__))
    return {name[:-3].replace("_", "-"): os.path.join(here, name) for name in sorted(os.listdir(here))
            if name.endswith(".py") and name not in ("__init__.py", "main.py")}


def _help_line(path: str) -> str:
    """The value of HELP in a verb's file, read without importing it."""
    import ast

    with open(path, encoding="utf-8") as stream:
        tree = ast.parse(stream.read())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "HELP":
            return ast.literal_eval(node.value)
    return ""


def _usage() -> str:
    width = max(len(v) for v in verbs())
    lines = [f"  {verb:<{width}}  {_help_line(path)}" for verb, path in verbs().items()]
    return "\n".join(["usage: essence VERB [options] ...", "", "verbs:", *lines, "",
                      "essence VERB --help tells a verb's options, which may stand anywhere; "
                      "tables are named as in Kaldi (ark:..., scp:..., pipes)."])


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status (0 done, 1 a user's mistake, 2 usage, 130 interrupted)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"essence {__version__}")
        return 0
    with contextlib.ExitStack() as streams:
        streams.enter_context(contextlib.redirect_stderr(VisibleStream(sys.stderr)))
        if argv[0] not in PRINT_DATA:
            streams.enter_context(contextlib.redirect_stdout(VisibleStream(sys.stdout)))
        return _run(argv)


def verb_parser(verb: str, module: ModuleType) -> argparse.ArgumentParser:
    """The options and arguments of a verb, for parse_intermixed_args: options may stand anywhere among arguments."""
    parser = argparse.ArgumentParser(prog=f"essence {verb}", description=module.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    module.add_arguments(parser)
    parser.add_argument("--allow-pipes", choices=("true", "false"), metavar="true|false",
                        help="whether commands in the place of files are run, in tables and in wav.scp "
                             f"(default: the environment variable {ALLOW_PIPES}, else true)")
    return parser


def _run(argv: list[str]) -> int:
    """Run one verb."""
    verb = argv[0]
    if verb not in verbs():
        print(f"essence: there is no verb '{verb}'\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"essence_kd.cli.{verb.replace('-', '_')}")
        args = verb_parser(verb, module).parse_intermixed_args(argv[1:])
        if args.allow_pipes:
            os.environ[ALLOW_PIPES] = args.allow_pipes  # worker processes and k2's Python inherit it
        pipes_allowed()  # or the variable has a value that means nothing
        status = module.run(args) or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"essence {verb}: {visible(str(error))}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("essence_kd"):
            raise
        from essence_kd.io.resources import checkout

        fix = "local/setup_env.sh sets one up that has, and ESSENCE_PYTHON may name another" if checkout() else \
            "install it with pip, or essence-kd with its extra 'recipe', which has all of them"
        print(f"essence {verb}: the Python {sys.executable} has no package '{error.name}'; {fix}", file=sys.stderr)
        return 1
    except ImportError as error:  # a package of another Python, or a damaged one
        print(f"essence {verb}: the Python {sys.executable} cannot use its package '{error.name}' "
              f"({' '.join(str(error).split())[:200]}); look at PYTHONPATH ('{os.environ.get('PYTHONPATH', '')}'), or "
              "have local/setup_env.sh make the environment anew", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"essence {verb}: not enough memory: {error or 'no more is there'}", file=sys.stderr)
        return 1
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our stdout has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        where = f"{error.filename}: " if error.filename else ""
        print(f"essence {verb}: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"essence {verb}: interrupted", file=sys.stderr)
        return 130


def command() -> None:
    """The whole process of a verb.

    A termination (of a cluster, a time limit) ends it as Ctrl-C does: what is half-written is removed, and commands
    behind pipes end, too. torchrun's processes may wait for each other then, so they are left to die at once.

    Names of files and what is printed are UTF-8, as all tables are, whatever the locale: a Python that has begun
    otherwise begins again.

    What NumPy makes when it is imported is kept from the garbage collector, who would look at it again and again: a
    start takes an eighth less time.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if "WORLD_SIZE" not in os.environ:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    gc.disable()
    if sys.argv[1:] and sys.argv[1] != "get":  # which starts many times in a run, and needs no arrays
        with contextlib.suppress(ImportError):  # the verb says so
            import numpy  # noqa: F401 - every other verb needs it
    gc.freeze()
    gc.enable()
    sys.exit(main())
