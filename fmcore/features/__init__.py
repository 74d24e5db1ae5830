"""Networks in whose features generated and real samples are compared."""
