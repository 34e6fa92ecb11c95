"""Data directories, corpora and output files."""
