"""The driver: what ``appliance serve`` becomes. It starts and supervises all other processes."""
