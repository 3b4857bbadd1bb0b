"""Test vectors of Standard Webhooks, which Replicate signs by: key, id, time, body, signature."""

from __future__ import annotations

SIGNATURES = [
    (
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    ),
    (
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "wh_01J9ZQ0000000000000000TEST",
        1700000000,
        b'{"id":"ufawqhfynnddngldkgtslldrkq","status":"succeeded"}',
        "v1,R8ThrCMguqikk0u6RBdJ3J4c3gZnZMBmmdIiCFS5Hlc=",
    ),
]
