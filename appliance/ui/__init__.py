"""The pages for people: a process of its own, which speaks the HTTP API like any client.

It knows nothing but what the API tells the token of whoever looks. ``server`` has the paths, ``session`` who
is signed in, ``shell`` what all pages have in common and how one is added.
"""
