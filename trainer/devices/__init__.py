"""The devices and processes that compute a run, and their control."""
