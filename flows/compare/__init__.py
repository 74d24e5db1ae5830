"""Compare chains: tables, charts and the HTML page."""
