"""The ``essence`` command: one file a verb."""
