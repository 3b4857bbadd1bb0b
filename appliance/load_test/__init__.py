"""Load tests: predictions of one model from several clients at once, through the HTTP API."""
