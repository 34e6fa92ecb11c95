"""fairseq tasks with a teacher. Importing a module registers its task."""
