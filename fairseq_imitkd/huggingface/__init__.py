"""Imports models of Hugging Face's format as fairseq checkpoints, with their dictionaries and subwords."""
