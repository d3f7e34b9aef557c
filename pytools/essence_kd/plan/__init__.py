"""The run as data: which sets, targets and systems there are, and their roles."""
