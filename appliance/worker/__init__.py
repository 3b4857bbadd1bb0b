"""The processes that run models, and the messages between them.

- The **zygote** (``zygote``) imports large libraries once, and forks worker processes.
- A **worker process** (``process/``) holds one loaded model. It is forked, or started by
  ``python -m appliance.worker.process`` where there is no zygote.
- A **runner replica** (``replica``, inside of a Ray Serve replica) has one worker process at a time. The
  replica passes predictions to the worker process, and keeps their events until the gateway has stored them.

The other modules: ``protocol`` defines the messages, ``handle`` starts and ends worker processes,
``event_buffer`` keeps events, ``memory_monitor`` measures the memory of a worker process, and ``cleanup``
removes processes and files that a crash has left behind.
"""
