"""What can be done with a run afterwards because it repeats bit for bit: prove it, diagnose it, watch it."""
