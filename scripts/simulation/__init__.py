"""A discrete-event simulator of residency: the appliance's own scheduler next to what others do."""
