"""Lexicon, language model, GMM and decoding graph."""
