"""Networks in use: backends, files for other programs, latency, and images without a label."""
