"""From runs to models that people rely on: stored policies, the promotion gate, champions and their history."""
