"""List every version of every coupling, find where it is stored, fetch it; send it to a hub."""
