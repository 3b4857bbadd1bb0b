"""Records, value types and rules of the appliance, without I/O."""
