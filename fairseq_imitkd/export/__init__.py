"""Trained models in the form of other engines."""
