"""The models that can be called, their versions, and how versions are added: builds and trainings."""
