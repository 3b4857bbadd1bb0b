"""The gateway: the process that answers HTTP requests, and owns all predictions and their statuses."""
