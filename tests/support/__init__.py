"""Stand-ins and small models for tests."""
