"""Webhooks: events of predictions, signed and sent to the URL that the request named."""
