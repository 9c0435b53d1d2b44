"""Spectra and attention as pure functions on tensors."""
