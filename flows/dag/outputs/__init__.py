"""What stages made, in the workspace, the cache and the remotes: find, check, mend, take over."""
