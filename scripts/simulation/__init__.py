"""A discrete-event simulator that compares the scheduler with policies of other systems."""
