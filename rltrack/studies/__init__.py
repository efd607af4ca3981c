"""Groups of trainings: the seeds of a study, the trials of a sweep."""
