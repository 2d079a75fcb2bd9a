"""One room of yolokd; ARCHITECTURE.md says what belongs here."""
