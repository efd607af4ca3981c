"""Prefect flows over rltrack's verbs, and what runs them: a server for each root, the local stack, deployments."""
