"""Which package of a list is missing, or is there in another version than the list asks for.

Also a script of local/setup_env.sh, for any Python: python - LIST... <requirements.py prints the first that is missing
and ends with status 1. It needs the standard library alone ("packaging" comes with every pip), and has no syntax that
an older Python cannot read.
"""
import os
import sys


def first_missing(paths):
    """What the first line of these files lacks that is not met ("lhotse is missing"); None where all are there."""
    from importlib import metadata

    try:
        from packaging.requirements import Requirement
    except ImportError:
        try:
            from pip._vendor.packaging.requirements import Requirement
        except ImportError:
            return "pip is missing"
    for path in paths:
        with open(path, encoding="utf-8") as stream:
            lines = [line.split("#")[0].strip() for line in stream]
        for need in map(Requirement, filter(None, lines)):
            if need.marker and not need.marker.evaluate():
                continue
            try:
                have = metadata.version(need.name)
            except metadata.PackageNotFoundError:
                return "%s is missing" % need.name
            if not need.specifier.contains(have, prereleases=True):
                return "%s is %s, wanted %s" % (need.name, have, need.specifier)
    return None


if __name__ == "__main__":
    if sys.version_info < (3, 9):
        sys.exit("Python %d.%d is too old: 3.9 or newer is needed" % sys.version_info[:2])
    # what PYTHONPATH names comes last
    sys.path.sort(key=lambda path: path in os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.exit(first_missing(sys.argv[1:]))
