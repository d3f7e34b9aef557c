"""``python -m essence_kd VERB ...``

Called by its path, as local/bin/essence does, no module is taken from the working directory, and what PYTHONPATH names
comes last: a queue.py or another torch there is not what this package means, while plug-ins are found.
"""
import os
import sys

if __name__ == "__main__":
    if not __package__:  # Python puts this folder first: its io/ is not Python's
        here = os.path.dirname(os.path.abspath(__file__))
        root = os.path.dirname(here)
        given = os.environ.get("PYTHONPATH")
        named = [path for path in map(os.path.abspath, given.split(os.pathsep) if given else ()) if path != root]
        sys.path[:] = [root, *(path for path in sys.path if path not in (here, root, *named)), *named]
    from essence_kd.cli.main import command

    command()
