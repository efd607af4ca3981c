"""A project of one's own: an environment, a feature extractor and a wrapper. Nothing here knows rltrack."""
