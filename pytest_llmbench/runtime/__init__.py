"""What outlives a function call: processes, servers, model files, locks, a run's folder."""
