"""From text and a teacher to a served student: the recipe, the plan of its steps, and how they are run."""
