"""Comparison of runs: their differences, scores and intervals, as a table, pictures and a page."""
