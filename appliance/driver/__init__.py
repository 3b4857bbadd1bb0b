"""The driver, the main process of ``appliance serve``, which starts and supervises all other processes."""
