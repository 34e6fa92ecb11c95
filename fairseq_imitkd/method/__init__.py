"""A distillation method: its flags, their checks, its schedules."""
