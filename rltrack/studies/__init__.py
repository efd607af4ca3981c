"""Several trainings as one piece of work: the seeds of a study."""
