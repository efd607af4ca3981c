"""From runs to registered models: stored policies, the promotion gate, champions and their history."""
