"""Fixtures of checkpoints that several test modules here share."""

from tests.helpers.teacher_checkpoints import cfg, folder, model

__all__ = ["cfg", "folder", "model"]
