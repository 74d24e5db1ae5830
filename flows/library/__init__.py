"""Every version of every coupling: its history, where it is stored, how it comes back."""
