"""Acoustic models: architectures, training, forward passes and posterior dumps."""
