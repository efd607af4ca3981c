"""Evaluation of a policy: episodes on fixed seeds, and their statistics."""
