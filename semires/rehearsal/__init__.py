"""The rehearsal: every stage of the study for a few items at full size, in a temporary folder."""
