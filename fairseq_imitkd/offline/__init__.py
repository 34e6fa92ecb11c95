"""Distillation before training: the teacher's translations of a corpus (SeqKD, Seq-Inter), made safely."""
