"""Runs client libraries, unmodified, against real livebridge instances and says what they do."""
