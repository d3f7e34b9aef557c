"""``python -m essence_kd VERB ...``."""
from essence_kd.cli.main import command

command()
