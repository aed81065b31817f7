"""What leaves the log and what comes in: exports, imports, documents."""
