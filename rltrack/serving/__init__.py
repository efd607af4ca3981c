"""A small server on one machine that follows a model's champion, compatible with MLflow's scoring server.

`requests` reads a body, `following` looks who is champion and loads it, `application` answers, `metrics` counts, `server` runs it.
"""
