"""``python -m essence_kd VERB ...``."""
import sys

from essence_kd.cli.main import main

sys.exit(main())
