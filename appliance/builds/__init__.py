"""Builds: Python environments of models, and Cog projects.

<home>/environments/<digest>/                Python environments of models
"""
