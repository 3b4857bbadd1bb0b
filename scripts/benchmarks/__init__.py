"""Side-by-side measurements of the appliance and of other servers; run by scripts/bench."""
