"""Pictures of every page of the UI."""
