"""Choosing rates, and the verdict."""
