"""Chains side by side: tables, charts, the page."""
