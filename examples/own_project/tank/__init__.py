"""A project of one's own: an environment, a feature extractor, a wrapper and a callback. Nothing here knows rltrack."""
