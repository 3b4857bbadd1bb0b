"""The processes that run models, and the messages between them.

- The **zygote** (``zygote``) imports the heavy libraries once and forks worker processes.
- A **worker process** (``process/``) holds one loaded model. It is forked, or started by
  ``python -m appliance.worker.process`` where there is no zygote.
- A **runner replica** (``replica``, inside of a Ray Serve replica) has one worker process at a time. It
  passes predictions to the worker process, and keeps its events until the gateway has stored the prediction.

The other modules: ``protocol`` has the messages, ``handle`` is the replica's side of its worker process,
``event_buffer`` keeps events, ``memory_monitor`` measures the memory of a worker process, and ``cleanup``
removes processes and files that a crash has left behind.
"""
