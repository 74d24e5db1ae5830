"""List every version of every coupling, find where it is stored, and fetch it."""
