"""Benchmarks that anyone can run, with the commands that made the tables in the documentation."""
