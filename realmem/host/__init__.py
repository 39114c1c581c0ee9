"""The machine underneath: what it has, what it allows, what it refuses."""
