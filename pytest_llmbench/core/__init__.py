"""What is true whatever the server and whatever the runner: no pytest, no threads, no I/O at import."""
