"""Decoding of score archives with k2 or kaldi-decoder."""
