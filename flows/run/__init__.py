"""Bring a chain up to date: each stage once, as a Prefect flow or in threads."""
