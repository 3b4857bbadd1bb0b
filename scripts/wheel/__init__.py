"""What pyproject.toml needs to build the wheel."""
