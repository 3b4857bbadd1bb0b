"""Where runner replicas live. ``base`` is the protocol, ``ray`` and ``node`` are the only users of Ray."""
