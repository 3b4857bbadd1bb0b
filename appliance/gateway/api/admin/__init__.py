"""Routes of the appliance itself, which Replicate does not have: status, usage, tokens, builds, metrics."""
