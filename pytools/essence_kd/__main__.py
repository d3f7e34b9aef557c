"""``python -m essence_kd VERB ...``

Called by its path, as local/bin/essence does, no module is taken from the working directory.
"""
import os
import sys

if __name__ == "__main__":
    if not __package__:  # Python puts this folder first: its io/ is not Python's
        sys.path[:] = [path for path in sys.path if path != os.path.dirname(__file__)]
    from essence_kd.cli.main import command

    command()
