"""Runs side by side: what differs, how good they are, how sure that is; as a table, pictures and a page."""
