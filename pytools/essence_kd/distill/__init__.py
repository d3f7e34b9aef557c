"""Combining teachers, selecting the essence, and the losses: mathematics on arrays."""
