"""Corpora and features."""
