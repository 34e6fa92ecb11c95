"""Sequence-level distillation: the teacher's translations of a corpus as a data set."""
