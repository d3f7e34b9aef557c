"""The ``essence`` command: one file per verb."""
