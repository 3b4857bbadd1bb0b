"""Uploaded files and output files, and the files that predictions take as inputs."""
