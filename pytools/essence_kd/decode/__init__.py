"""Decoding of score archives, by any decoder."""
