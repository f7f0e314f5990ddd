"""The launchers, and the jobs that they submit."""
